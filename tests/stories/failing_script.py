"""A training, or a test, in which one process fails in the midst of it.

``failing_script.py FOLDER PLACE FAULT SETTINGS``: in PLACE ("train_step", "val_step", "test_step", "dataset") process 1
does FAULT ("raise", "kill", "sleep", "leave", "nan", "lock": C code that holds python's lock for 8 s);
SETTINGS are JSON. With FOREIGN in the environment the script opens the process group by itself, as Ray does, and
catches what the run raises.
"""

import ctypes
import json
import os
import signal
import sys
import time

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import Dataset

from vision3d_engine import EpochBasedTrainer, SingleTester, build_dataloader

FOLDER, PLACE, FAULT, SETTINGS = sys.argv[1:5]


def fail_in(place, rank, iteration):
    if place != PLACE or rank != 1 or iteration != 3:
        return
    if FAULT == "raise":
        raise ValueError("a bad cloud")
    if FAULT == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if FAULT == "lock":
        ctypes.PyDLL(None).sleep(8)
        return
    if FAULT == "nan":
        return
    if FAULT == "leave":
        sys.exit(3)
    time.sleep(1000)


class Rows(Dataset):
    def __init__(self, count, rank):
        self.count, self.rank = count, rank

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        fail_in("dataset", self.rank, index)
        return {"x": torch.full((3,), index / self.count)}


class Trainer(EpochBasedTrainer):
    def __init__(self):
        trainer = {"max_epoch": 2, "log_steps": 2, "collective_timeout_s": 1000, "heartbeat_s": 1000}
        super().__init__({"exp": {"output_dir": FOLDER}, "trainer": trainer | json.loads(SETTINGS)})
        rank = self.rank = self._session.world.rank
        train = build_dataloader(Rows(48, rank), 1, num_workers=1 if PLACE == "dataset" else 0)
        self.register_loader(train, build_dataloader(Rows(24, rank), 1, num_workers=0))
        model = self.register_model(nn.Linear(3, 1))
        self.register_optimizer(torch.optim.SGD(model.parameters(), lr=0.1))

    def train_step(self, epoch, iteration, data_dict):
        fail_in("train_step", self.rank, iteration)
        spoils = FAULT == "nan" and self.rank == 1 and iteration == 3
        return {}, {"loss": self.model(data_dict["x"]).square().mean() * (float("nan") if spoils else 1)}

    def val_step(self, epoch, iteration, data_dict):
        fail_in("val_step", self.rank, iteration)
        return {}, {"mae": self.model(data_dict["x"]).abs().mean()}


class Tester(SingleTester):
    def __init__(self):
        super().__init__({"exp": {"output_dir": FOLDER}}, checkpoint=f"{FOLDER}/weights.pth")
        rank = self.rank = self._session.world.rank
        self.register_loader(build_dataloader(Rows(48, rank), 1, num_workers=0))
        model = nn.Linear(3, 1)
        if rank == 0:
            torch.save(model.state_dict(), f"{FOLDER}/weights.pth")
        self._session.world.gather(None)
        self.register_model(model)

    def test_step(self, iteration, data_dict):
        fail_in("test_step", self.rank, iteration)
        return self.model(data_dict["x"])

    def eval_step(self, iteration, data_dict, output_dict):
        return {"mae": output_dict.abs().mean()}


def main():
    (Tester if PLACE == "test_step" else Trainer)().run()


if "FOREIGN" in os.environ:
    dist.init_process_group("gloo")
    try:
        main()
    except Exception as error:  # noqa: BLE001  the test decides
        print("CAUGHT", type(error).__name__, "GROUP IS OPEN" if dist.is_initialized() else "", error, flush=True)
else:
    main()
