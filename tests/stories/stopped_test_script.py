"""A test of 30 cases, each of which waits for the one before to be seen: stopped_test_script.py FOLDER WORKERS."""

import sys
import time
from pathlib import Path

import torch

from vision3d_engine import SingleTester, build_dataloader

folder, workers = Path(sys.argv[1]), int(sys.argv[2])
del sys.argv[1:3]


class Tester(SingleTester):
    def __init__(self):
        super().__init__({"exp": {"output_dir": str(folder)}}, str(folder.parent / "weights.pth"))
        self.register_model(torch.nn.Linear(3, 2))
        data = [{"points": torch.full((5, 3), float(number))} for number in range(30)]
        self.register_loader(build_dataloader(data, batch_size=1, num_workers=workers))

    def test_step(self, iteration, data_dict):
        print("CASE", iteration, flush=True)
        time.sleep(0 if "--resume" in sys.argv else 0.2)
        return {"score": data_dict["points"].mean()}

    def eval_step(self, iteration, data_dict, output_dict):
        return {"score": output_dict["score"]}


Tester().run()
