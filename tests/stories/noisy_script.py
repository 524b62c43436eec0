"""A training with everything random that a training has, for stories of stops and resumes.

``noisy_script.py FOLDER KIND STEP_S SETTINGS``: the kind is "epoch" or "iter", a step takes STEP_S seconds, SETTINGS
are JSON. At the end prints ``RESULT`` and a digest of the weights, on the main process. At each place that GATES in
the environment names, such as "train 1.5,val 2.1" (epoch and iteration), it says ``AT GATE`` and waits for the test.
"""

import hashlib
import json
import os
import random
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from vision3d_engine import EpochBasedTrainer, IterBasedTrainer, build_dataloader


class Noisy(Dataset):
    def __len__(self):
        return 24

    def __getitem__(self, index):
        noise = torch.randn(3) + torch.from_numpy(np.random.normal(size=3)).float() + random.random()  # noqa: NPY002
        return {"x": index / 24 + 0.1 * noise}


class Steps:
    def __init__(self, folder, step_s, trainer):
        super().__init__(
            {"exp": {"output_dir": folder, "seed": 5}, "trainer": {"max_epoch": 3, "log_steps": 2, **trainer}}
        )
        self.folder, self.step_s = folder, step_s
        size = self._session.world.size
        train = build_dataloader(Noisy(), 4 // size, num_workers=1, shuffle=True)
        self.register_loader(train, build_dataloader(Noisy(), 5, num_workers=0))
        torch.manual_seed(0)
        model = self.register_model(nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.2), nn.Linear(8, 1)))
        self.register_optimizer(torch.optim.Adam(model.parameters(), lr=0.01))

    def pass_gate(self, place):
        if place not in os.environ.get("GATES", "").split(","):
            return
        print("AT GATE\n", end="", flush=True)
        while not Path(f"{self.folder}.{place}").exists():
            time.sleep(0.01)

    def train_step(self, epoch, iteration, data_dict):
        self.pass_gate(f"train {epoch}.{iteration}")
        time.sleep(self.step_s)
        return {}, {"loss": (self.model(data_dict["x"]) - 1).square().mean()}

    def after_train_step(self, epoch, iteration, data_dict, output_dict, result_dict):
        print(f"STEP {self.total_steps}\n", end="", flush=True)  # in one piece, also where nothing is buffered

    def val_step(self, epoch, iteration, data_dict):
        print("VALIDATES\n", end="", flush=True)
        self.pass_gate(f"val {epoch}.{iteration}")
        time.sleep(self.step_s)
        return {}, {"error": (self.model(data_dict["x"]) - 1).abs().mean()}


class Epoch(Steps, EpochBasedTrainer):
    pass


class Iter(Steps, IterBasedTrainer):
    pass


if __name__ == "__main__":
    folder, kind, step_s, settings = sys.argv[1:5]
    trainer = {"epoch": Epoch, "iter": Iter}[kind](folder, float(step_s), json.loads(settings))
    trainer.run()
    if trainer._session.world.is_main:
        state = trainer.model.state_dict()
        print("RESULT", hashlib.sha256(b"".join(value.numpy().tobytes() for value in state.values())).hexdigest())
