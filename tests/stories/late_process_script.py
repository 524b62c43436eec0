"""A test with a metric on two processes, of which the main one still writes when the other has ended its batches."""

import os
import sys
import time
from pathlib import Path

import torch

from vision3d_engine import ConfusionMatrix, SingleTester, build_dataloader
from vision3d_engine.core import background
from vision3d_engine.loop import case_block

folder = Path(sys.argv.pop(1))
progress = folder / "results" / ".progress"
is_main = os.environ["RANK"] == "0"
background._EVERY_S, case_block._CASES = 0.002, 1


def wait_for(name):
    while not (progress / name).exists():
        time.sleep(0.01)


class Tester(SingleTester):
    def __init__(self):
        super().__init__({"exp": {"output_dir": str(folder)}}, str(folder / "weights.pth"))
        self.register_model(torch.nn.Linear(3, 2))
        data = [{"points": torch.zeros(5, 3), "labels": torch.zeros(5, dtype=torch.long)} for _ in range(6)]
        self.register_loader(build_dataloader(data, batch_size=1, num_workers=0))
        self.seen = self.register_metric("seen", ConfusionMatrix(2))

    def test_step(self, iteration, data_dict):
        if iteration == 3:
            wait_for("attempt-0001-rank-0.2.state")
        return {}

    def eval_step(self, iteration, data_dict, output_dict):
        self.seen.update(torch.zeros(1, 5, dtype=torch.long), data_dict["labels"])
        if is_main and iteration == 3:
            wait_for("attempt-0001-rank-1.3.state")
            time.sleep(1)  # the other one is at the end now, as far as it comes without this one
        return {}

    def after_test_epoch(self, summary_dict):
        print("RESULT", self.seen.merged().matrix.sum().item(), flush=True)


if is_main:
    folder.mkdir()
    torch.save(torch.nn.Linear(3, 2).state_dict(), folder / "weights.pth")
Tester().run()
