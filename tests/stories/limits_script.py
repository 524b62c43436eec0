"""Trains with data workers under a limit: ``limits_script.py FOLDER files|worker|soft|bus|memory``."""

import os
import resource
import signal
import sys
from pathlib import Path

import torch
from torch.utils.data import Dataset

from vision3d_engine import EpochBasedTrainer, build_dataloader, ignore_command_line

ignore_command_line()
FOLDER, LIMIT = sys.argv[1:]

HARD = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
if LIMIT in {"worker", "soft"}:
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64 if LIMIT == "worker" else HARD))


class Rows(Dataset):
    def __len__(self):
        return 400 if LIMIT != "soft" else 20

    def __getitem__(self, index):
        if LIMIT == "bus":
            os.kill(os.getpid(), signal.SIGBUS)
        return {f"x{number}": torch.zeros(100_000 if LIMIT == "memory" else 1) for number in range(10)}


class Trainer(EpochBasedTrainer):
    def __init__(self):
        super().__init__({"exp": {"output_dir": FOLDER}, "trainer": {"max_epoch": 1, "val_every": "never"}})
        self.register_loader(build_dataloader(Rows(), 1, num_workers=2, prefetch_factor=20))
        model = self.register_model(torch.nn.Linear(1, 1))
        self.register_optimizer(torch.optim.SGD(model.parameters(), lr=0.01))
        self.kept = []

    def limit(self):
        if LIMIT == "files" and not self.kept:  # here alone: workers have started
            used = len(list(Path("/proc/self/fd").iterdir()))
            resource.setrlimit(resource.RLIMIT_NOFILE, (used + 60, used + 60))

    def train_step(self, epoch, iteration, data_dict):
        self.limit()
        self.kept.append(data_dict)
        return {}, {"loss": self.model(data_dict["x0"][:1, :1]).mean()}


Trainer().run()
