"""Trains for a few steps; faults can be planted."""

import os
import threading

import torch
from torch import nn
from torch.utils.data import Dataset

from vision3d_engine import EpochBasedTrainer, build_dataloader, get_parser
from vision3d_engine.distributed.processes import is_master


class Clouds(Dataset):
    """Samples that are drawn."""

    def __len__(self):
        return 12

    def __getitem__(self, index):
        assert Trainer.own().fault != "no data"
        if Trainer.own().fault == "dead worker" and index == 7:
            os._exit(3)
        return {"points": torch.randn(4), "target": torch.rand(()), "name": f"cloud-{index}"}


class Trainer(EpochBasedTrainer):
    def __init__(self):
        trainer = {"max_epoch": 2, "log_steps": 1, "replica_check": "off", "nonfinite": "ignore"}
        trainer |= {"hang_after": "4 s", "on_hang": "stop"} if self.own().fault == "deadlock" else {}
        super().__init__({"exp": {"output_dir": self.own().folder}, "trainer": trainer})
        workers = {"num_workers": 1, "persistent_workers": False} if self.own().fault == "dead worker" else {}
        self.register_loader(build_dataloader(Clouds(), 2, shuffle=True, **workers), build_dataloader(Clouds(), 2))
        torch.manual_seed(0)
        layers = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 1)
        model = self.register_model(nn.Sequential(*layers))
        self.register_optimizer(torch.optim.Adam(model.parameters(), lr=1e-2))

    @staticmethod
    def own():
        return get_parser().parse_known_args()[0]

    def train_step(self, _epoch, _iteration, data_dict):
        output = self.model(data_dict["points"])[:, 0]
        if self.own().fault == "shape" and self.total_steps == 4:
            output = output @ torch.ones(7)
        if self.own().fault == "deadlock" and self.total_steps == 3 and is_master():
            wait_for_ever()
        if self.own().fault == "log" and self.total_steps == 3 and not is_master():
            output = output + torch.log(output * 0)
        if self.own().fault == "dump" and self.total_steps == 4:
            self.dump_step()
        if self.own().fault == "exp" and self.total_steps == 4:
            output = output + torch.exp(output * 0 + 100)
        return {}, {"loss": (output - data_dict["target"]).square().mean() * float(self.own().scale)}

    def val_step(self, _epoch, _iteration, data_dict):
        return {}, {"loss": self.model(data_dict["points"]).mean()}


def wait_for_ever():
    threading.Event().wait()


if __name__ == "__main__":
    get_parser().add_argument("--folder", default="run")
    get_parser().add_argument("--fault", default="")
    get_parser().add_argument("--scale", default="1")
    Trainer().run()
