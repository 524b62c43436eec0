"""A run with a schedule of updates and one on a metric, which kills itself where it is told to."""

import json
import os
import signal
import sys

import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from vision3d_engine import EpochBasedTrainer, build_dataloader, build_scheduler

SCORES = (1.0, 0.5, 2.0, 1.0, 0.5)  # the schedule on it halves the rate after epochs 2, 4 and 5
RANK = int(os.environ.get("RANK", "0"))


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 10

    def __getitem__(self, index):
        return {"x": torch.tensor([index / 10.0, 1.0], dtype=torch.float64)}


class Plateau(ReduceLROnPlateau):
    """Lets the script end between its step and the checkpoint."""

    def __init__(self, optimizer, act):
        super().__init__(optimizer, "max", 0.5, 0)
        self._act = act

    def step(self, metrics, epoch=None):
        super().step(metrics)
        self._act("stepped")

    def state_dict(self):
        return {key: value for key, value in super().state_dict().items() if key != "_act"}


class Script(EpochBasedTrainer):
    def __init__(self, folder, kill_at=None, **trainer):
        trainer = {"max_epoch": 5, "grad_acc_steps": 2, "save_every": "1 iteration", "device": "cpu", **trainer}
        super().__init__({"exp": {"output_dir": folder}, "trainer": trainer})
        self.kill_at, self.rates = kill_at, []
        options = {"batch_size": 2, "num_workers": 0}
        self.register_loader(build_dataloader(Rows(), **options), build_dataloader(Rows(), **options))
        for name in ("first", "second"):
            torch.manual_seed(1)
            model = self.register_model(nn.Linear(2, 1).double(), name=name)
            self.register_optimizer(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), name=name)
        one_cycle = {"scheduler": {"type": "OneCycleLR", "max_lr": 0.2, "interval": "update"}}
        self.register_scheduler(build_scheduler(self.optimizer["first"], one_cycle), name="first")
        self.register_scheduler(Plateau(self.optimizer["second"], self.at), name="second", metric="val/score")

    def at(self, place, epoch=None, iteration=None):
        if self.kill_at in (f"{place} {epoch or self.epoch}", f"{place} {epoch} {iteration}"):
            os.kill(os.getpid(), signal.SIGKILL)

    def train_step(self, epoch, iteration, data_dict):
        self.at("train", epoch, iteration)
        error = self.model["first"](data_dict["x"]) + self.model["second"](data_dict["x"]) - data_dict["x"].sum()
        return {}, {"loss": error.square().mean()}

    def val_step(self, epoch, iteration, data_dict):
        self.at("val", epoch, iteration)
        return {}, {"error": self.model["first"](data_dict["x"]).abs().mean()}

    def after_val_epoch(self, epoch, summary_dict):
        self.at("validated", epoch)
        summary_dict["score"] = SCORES[epoch - 1] + 7 * RANK * epoch  # on other processes it only climbs

    def after_train_step(self, epoch, iteration, data_dict, output_dict, result_dict):
        self.rates.append([epoch, iteration, *(group["lr"] for group in self.optimizer.param_groups)])

    def result(self):
        weights = [value.tolist() for value in self.model.state_dict().values()]
        rates = [group["lr"] for group in self.optimizer.param_groups]
        return json.dumps({"weights": weights, "rates": rates, "used": self.rates})


if __name__ == "__main__":
    folder, kill_at, resume = sys.argv[1:]
    del sys.argv[1:]
    torch.set_num_threads(1)
    script = Script(folder, kill_at=kill_at or None, resume=bool(int(resume)))
    script.run()
    print("RESULT", script.result())
