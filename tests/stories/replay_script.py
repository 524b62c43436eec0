"""Trains for a few steps; faults can be planted."""

import os
import threading
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import Dataset

from vision3d_engine import EpochBasedTrainer, build_dataloader, get_parser
from vision3d_engine.distributed.processes import get_rank, get_world_size, is_master


class Clouds(Dataset):
    """Samples that are drawn."""

    def __len__(self):
        return 12

    def __getitem__(self, index):
        own = Trainer.own()
        assert own.fault != "no data"
        if own.fault == "dead worker" and index == 7:
            os._exit(3)
        far = 1e30 if own.fault in {"far sample", "strict"} and index == 7 else 1  # whose square overflows
        sample = {"points": torch.randn(4), "target": torch.rand(()) * far, "name": f"cloud-{index}"}
        return {**sample, "cloud": torch.randn(20, 3), "labels": torch.arange(20)} if own.clouds else sample


class Trainer(EpochBasedTrainer):
    def __init__(self):
        trainer = {"max_epoch": 2, "log_steps": 1, "replica_check": "off", "nonfinite": "ignore"}
        trainer["sync_batchnorm"] = self.own().fault == "sync setting"
        trainer |= {"replay_every": self.own().replay_every, "parallel": self.own().parallel}
        trainer |= {"hang_after": "4 s", "on_hang": "stop"} if self.own().fault == "deadlock" else {}
        super().__init__({"exp": {"output_dir": self.own().folder}, "trainer": trainer})
        workers = {"num_workers": 1, "persistent_workers": False} if self.own().fault == "dead worker" else {}
        size = self.own().batch_size
        train_loader = build_dataloader(Clouds(), size, shuffle=True, **workers)
        self.register_loader(train_loader, build_dataloader(Clouds(), size))
        torch.manual_seed(0)
        norm = nn.SyncBatchNorm(8) if self.own().fault == "sync" and get_world_size() == 1 else nn.BatchNorm1d(8)
        layers = nn.Linear(4, 8), norm, nn.Dropout(0.3), nn.Linear(8, 1)
        model = self.register_model(nn.Sequential(*layers))
        self.register_optimizer(torch.optim.Adam(model.parameters(), lr=1e-2))

    @staticmethod
    def own():
        return get_parser().parse_known_args()[0]

    def train_step(self, _epoch, _iteration, data_dict):
        output = self.model(data_dict["points"])[:, 0]
        if self.own().clouds:
            self.endpoints.register("features", data_dict["cloud"].repeat(1, 1, 2))
        self.plant()
        if self.own().fault == "shape" and self.total_steps == 4:
            output = output @ torch.ones(7)
        if self.own().fault == "strict" and data_dict["target"].max() > 1e20:
            message = "a sample is too far"
            raise ValueError(message)
        if self.own().fault == "log" and self.total_steps == 3 and not is_master():
            output = output + torch.log(output * 0)
        if self.own().fault == "dump" and self.total_steps == 4:
            self.dump_step()
        if self.own().fault == "exp" and self.total_steps == 4:
            output = output + torch.exp(output * 0 + 100)
        if self.own().fault == "exchange":
            dist.all_reduce(torch.zeros(1))
        loss = (output - data_dict["target"]).square().mean() * float(self.own().scale)
        if self.own().told:
            Path(f"{self.own().told}-{self.total_steps}-{get_rank()}").write_text(repr(loss.item()))
        return {}, {"loss": loss}

    def plant(self):
        if self.own().fault == "deadlock" and self.total_steps == 3 and is_master():
            wait_for_ever()
        if self.own().fault == "raise on 1" and self.total_steps == 3 and not is_master():
            message = "planted"
            raise ValueError(message)

    def val_step(self, _epoch, _iteration, data_dict):
        return {}, {"loss": self.model(data_dict["points"]).mean()}


def wait_for_ever():
    threading.Event().wait()


if __name__ == "__main__":
    get_parser().add_argument("--folder", default="run")
    get_parser().add_argument("--fault", default="")
    get_parser().add_argument("--scale", default="1")
    get_parser().add_argument("--clouds", action="store_true")
    get_parser().add_argument("--told", default="")
    get_parser().add_argument("--replay_every")
    get_parser().add_argument("--parallel", default="ddp")
    get_parser().add_argument("--batch_size", type=int, default=2)
    Trainer().run()
