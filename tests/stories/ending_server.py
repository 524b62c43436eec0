"""A process of a world whose runs end before their last epoch, case by case; also a script that runs one case."""

import json
import os
import signal
import sys

import torch
from torch import nn

from tests.stories.serving import serve
from vision3d_engine import EpochBasedTrainer, IterBasedTrainer, build_dataloader

RANK = int(os.environ.get("RANK", "0"))


class Rows(torch.utils.data.Dataset):
    def __init__(self, count):
        self.x = torch.randn(count, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return {"x": self.x[index], "y": self.x[index].sum().sin()}


class _Steps:
    """Does what a case says at one moment: ``{"at": [moment, numbers], "rank": 1, "do": "stop"}``."""

    def __init__(self, case):
        defaults = {"max_epoch": 3, "log_steps": 2, "device": "cpu", "save_every": "1 iteration", "fsdp_min_params": 1}
        super().__init__({"exp": {"output_dir": case["folder"]}, "trainer": defaults | case.get("trainer", {})})
        self.case, self.moments = case, []
        rows = Rows(case.get("count", 12))
        self.register_loader(
            build_dataloader(rows, 2, shuffle=True, num_workers=0), build_dataloader(rows, 2, num_workers=0)
        )
        torch.manual_seed(5)
        model = self.register_model(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double())
        self.register_optimizer(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, foreach=False))

    def _at(self, moment, *numbers):
        for act in self.case.get("acts", []):
            if act["at"] == [moment, list(numbers)] and act.get("rank", RANK) == RANK:
                self._do(act["do"])

    def _do(self, what):
        if what == "stop":
            self.stop(f"rank {RANK}")
        else:
            os.kill(os.getpid(), getattr(signal, what))

    def _loss(self, data_dict):
        return (self.model(data_dict["x"])[:, 0] - data_dict["y"]).square().mean()

    def train_step(self, epoch, iteration, data_dict):
        self._at("train_step", epoch, iteration)
        return {}, {"loss": self._loss(data_dict)}

    def val_step(self, epoch, iteration, data_dict):
        self._at("val_step", epoch, iteration)
        return {}, {"error": self._loss(data_dict)}

    def after_train_epoch(self, epoch, summary_dict):
        self.moments.append(["after_train_epoch", epoch, summary_dict["loss"]])

    def after_val_epoch(self, epoch, summary_dict):
        self._at("after_val_epoch", epoch)
        if scores := self.case.get("scores"):  # those of other processes only climb
            summary_dict["score"] = scores[epoch - 1] + 7.0 * RANK * epoch
        self.moments.append(["after_val_epoch", epoch, summary_dict["error"]])

    def after_train(self):
        self.moments.append(["after_train", self.epoch, 0])


class EpochScript(_Steps, EpochBasedTrainer):
    pass


class IterScript(_Steps, IterBasedTrainer):
    pass


def whole(tensor):
    return getattr(tensor, "full_tensor", lambda: tensor)().detach().tolist()


def run(case):
    """Run a case, and return what can be compared."""
    trainer = (IterScript if case.get("kind") == "iter" else EpochScript)(case)
    trainer.run()
    weights = [whole(value) for value in trainer.model.state_dict().values()]
    counts = {"epoch": trainer.epoch, "steps": trainer.total_steps, "updates": trainer._progress.updates}
    return {"weights": weights, "moments": trainer.moments, **counts}


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1].isdigit():
        serve(run)
    else:
        case = json.loads(sys.argv.pop(1))
        print("RESULT", json.dumps(run(case)))
