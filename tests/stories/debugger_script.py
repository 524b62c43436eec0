"""A training that a person looks into: ``debugger_script.py FOLDER CASE [FLAGS]``.

In CASE "hook" a hook calls ``breakpoint()``, in "rank" all processes call ``self.breakpoint(rank=1)``, in "error"
a step fails; process 1 alone if there are several.
"""

import json
import os
import sys

import torch
from torch import nn

from vision3d_engine import EpochBasedTrainer, build_dataloader

FOLDER, CASE = sys.argv[1:3]
LIMITS = json.loads(os.environ.get("LIMITS", "{}"))


class Trainer(EpochBasedTrainer):
    def __init__(self):
        super().__init__({"exp": {"output_dir": FOLDER}, "trainer": {"max_epoch": 1, "log_steps": 2, **LIMITS}})
        self.rank = self._session.world.rank
        self.size = self._session.world.size
        loader = build_dataloader([{"x": torch.full((3,), index / 8)} for index in range(8)], 1, num_workers=0)
        self.register_loader(loader, loader)
        model = self.register_model(nn.Linear(3, 1))
        self.register_optimizer(torch.optim.SGD(model.parameters(), lr=0.1))

    def before_train_step(self, epoch, iteration, data_dict):
        treasure = 6 * 7
        if CASE == "hook" and iteration in (3, 4):
            breakpoint()  # noqa: T100
        if CASE == "rank" and iteration == 3:
            self.breakpoint(rank=1)
        return treasure

    def train_step(self, epoch, iteration, data_dict):
        if CASE == "error" and iteration == 3 and self.rank == self.size - 1:
            raise ValueError("a bad cloud")
        return {}, {"loss": self.model(data_dict["x"]).square().mean()}

    def val_step(self, epoch, iteration, data_dict):
        return {}, {"mae": self.model(data_dict["x"]).abs().mean()}


Trainer().run()
print("DONE", flush=True)
