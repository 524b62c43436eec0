"""A training script that runs by itself, or as the loop of Ray's TorchTrainer; worker 1 dies once in mid-epoch."""

import os
import resource
import signal
from pathlib import Path

import torch
import torch.distributed as dist
from torch.utils.data import Dataset

from vision3d_engine import EpochBasedTrainer, build_dataloader
from vision3d_engine.integrations.ray import report


class Rows(Dataset):
    def __init__(self, count):
        generator = torch.Generator().manual_seed(3)
        self.x = torch.randn(count, 3, generator=generator, dtype=torch.float64)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return {"x": self.x[index], "y": self.x[index].sum().sin()}


class Trainer(EpochBasedTrainer):
    def __init__(self, folder, steps):
        trainer = {"max_epoch": 3, "log_steps": 2, "grad_acc_steps": steps, "resume": True, "save_every": "1 iteration"}
        super().__init__({"exp": {"output_dir": str(folder)}, "trainer": trainer})
        loaders = [build_dataloader(Rows(count), 2, num_workers=0, shuffle=count == 16) for count in (16, 7)]
        self.register_loader(*loaders)
        torch.manual_seed(5)
        model = self.register_model(torch.nn.Linear(3, 1).double())
        self.register_optimizer(torch.optim.SGD(model.parameters(), lr=0.1))

    def train_step(self, epoch, iteration, data_dict):
        error = self.model(data_dict["x"])[:, 0] - data_dict["y"]
        return {}, {"loss": error.square().mean()}

    def val_step(self, epoch, iteration, data_dict):
        return {}, {"mae": (self.model(data_dict["x"])[:, 0] - data_dict["y"]).abs().mean()}


class Dying(Trainer):
    """Worker 1 kills itself in the third step of epoch 2, once."""

    def before_train_step(self, epoch, iteration, data_dict):
        mark = Path(self.output_dir) / "has died"
        if (epoch, iteration, dist.get_rank()) == (2, 3, 1) and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def train(config):
    """The loop of one worker."""
    trainer = Dying(config["folder"], 1)
    report(trainer)
    trainer.run()
    megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    (Path(config["folder"]) / f"memory{dist.get_rank()}").write_text(f"{megabytes:.0f}")
    (Path(config["folder"]) / f"group{dist.get_rank()}").write_text(str(dist.is_initialized()))
