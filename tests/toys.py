"""A tiny problem, and trainers and testers on it that write down every hook call."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from vision3d_engine import BatchTester, EpochBasedTrainer, IterBasedTrainer, SingleTester


class Rows(Dataset):
    """Inputs (3,) and targets that a linear model can learn, as float64; sample i is a function of i."""

    def __init__(self, count: int) -> None:
        generator = torch.Generator().manual_seed(7)
        self.x = torch.randn(64, 3, generator=generator, dtype=torch.float64)[:count]
        self.y = self.x @ torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64) + 0.3

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"x": self.x[index], "y": self.y[index]}


def rows_loader(count: int = 6, batch_size: int = 2, **options: Any) -> DataLoader:
    return DataLoader(Rows(count), batch_size=batch_size, **options)


def linear_model() -> nn.Linear:
    """A float64 linear model with fixed weights."""
    model = nn.Linear(3, 1).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.1, 0.2, -0.3]]))
        model.bias.zero_()
    return model


class FailingBackward(torch.autograd.Function):
    """An allocator that has no memory left in the backward pass, once some gradients are there."""

    @staticmethod
    def forward(_ctx, x):
        return x.clone()

    @staticmethod
    def backward(_ctx, _gradient):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


def settings(folder: Any, **trainer: Any) -> dict[str, Any]:
    return {"exp": {"output_dir": str(folder)}, "trainer": {"max_epoch": 1, "log_steps": 100, **trainer}}


class _Steps:
    """The two steps and all hooks, each of which is written down in `calls`."""

    calls: list[tuple]
    model: Any
    optimizer: Any

    def _note(self, name: str, *args: Any) -> None:
        self.calls.append((name, *(arg for arg in args if isinstance(arg, int))))

    def train_step(self, epoch, iteration, data_dict):
        self._note("train_step", epoch, iteration)
        error = self.model(data_dict["x"])[:, 0] - data_dict["y"]
        return {"error": error}, {"loss": error.square().mean(), "mae": error.detach().abs().mean()}

    def val_step(self, epoch, iteration, data_dict):
        self._note("val_step", epoch, iteration)
        error = self.model(data_dict["x"])[:, 0] - data_dict["y"]
        return {"error": error}, {"mae": error.abs().mean()}

    def before_train(self):
        self._note("before_train")

    def after_train(self):
        self._note("after_train")

    def before_train_epoch(self, epoch):
        self._note("before_train_epoch", epoch)

    def before_train_step(self, epoch, iteration, data_dict):
        self._note("before_train_step", epoch, iteration)

    def after_backward(self, epoch, iteration, data_dict, output_dict, result_dict):
        self._note("after_backward", epoch, iteration)

    def after_train_step(self, epoch, iteration, data_dict, output_dict, result_dict):
        self._note("after_train_step", epoch, iteration)

    def after_train_epoch(self, epoch, summary_dict):
        self._note("after_train_epoch", epoch)

    def before_val_epoch(self, epoch):
        self._note("before_val_epoch", epoch)

    def before_val_step(self, epoch, iteration, data_dict):
        self._note("before_val_step", epoch, iteration)

    def after_val_step(self, epoch, iteration, data_dict, output_dict, result_dict):
        self._note("after_val_step", epoch, iteration)

    def after_val_epoch(self, epoch, summary_dict):
        self._note("after_val_epoch", epoch)

    def optimizer_step(self):
        self._note("optimizer_step")
        super().optimizer_step()  # type: ignore[misc]

    def scheduler_step(self):
        self._note("scheduler_step")
        super().scheduler_step()  # type: ignore[misc]

    def log(self, message, level="INFO"):
        if str(message).startswith("epoch:"):
            self._note("log")
        super().log(message, level)  # type: ignore[misc]

    def _register(self, train_loader, val_loader, lr):
        self.calls = []
        self.register_loader(train_loader, val_loader)  # type: ignore[attr-defined]
        model = self.register_model(linear_model())  # type: ignore[attr-defined]
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        self.register_optimizer(optimizer)  # type: ignore[attr-defined]
        self.register_scheduler(torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0))  # type: ignore[attr-defined]


class ToyEpochTrainer(_Steps, EpochBasedTrainer):
    def __init__(self, cfg=None, train_loader=None, val_loader=None, lr=0.1):
        super().__init__(cfg)
        self._register(train_loader or rows_loader(), val_loader or rows_loader(4), lr)


class ToyIterTrainer(_Steps, IterBasedTrainer):
    def __init__(self, cfg=None, train_loader=None, val_loader=None, lr=0.1):
        super().__init__(cfg)
        self._register(train_loader or rows_loader(), val_loader or rows_loader(4), lr)


class _TestSteps:
    calls: list[tuple]
    model: Any

    def _note(self, name, *args):
        self.calls.append((name, *(arg for arg in args if isinstance(arg, int))))

    def before_test_epoch(self):
        self._note("before_test_epoch")

    def before_test_step(self, iteration, data_dict):
        self._note("before_test_step", iteration)

    def test_step(self, iteration, data_dict):
        self._note("test_step", iteration)
        return {"prediction": self.model(data_dict["x"])[:, 0]}

    def eval_step(self, iteration, data_dict, output_dict):
        self._note("eval_step", iteration)
        return {"mae": (output_dict["prediction"] - data_dict["y"]).abs().mean()}

    def after_test_step(self, iteration, data_dict, output_dict, result_dict):
        self._note("after_test_step", iteration)

    def after_test_epoch(self, summary_dict):
        self._note("after_test_epoch")
        self.summary = dict(summary_dict)

    def _register(self, loader):
        self.calls = []
        self.register_loader(loader)  # type: ignore[attr-defined]
        self.register_model(linear_model())  # type: ignore[attr-defined]


class ToySingleTester(_TestSteps, SingleTester):
    def __init__(self, cfg=None, loader=None, checkpoint="weights.pth"):
        super().__init__(cfg, checkpoint)
        self._register(loader or rows_loader(3, batch_size=1))


class ToyBatchTester(_TestSteps, BatchTester):
    def __init__(self, cfg=None, loader=None, checkpoint="weights.pth"):
        super().__init__(cfg, checkpoint)
        self._register(loader or rows_loader(5, batch_size=2))


def save_weights(folder: Any) -> nn.Linear:
    """Write the toy model's weights where toy testers look for them, and return the model."""
    model = linear_model()
    path = folder / "checkpoints"
    path.mkdir(parents=True, exist_ok=True)
    torch.save({"metadata": {"epoch": 1, "total_steps": 3}, "model": model.state_dict()}, path / "weights.pth")
    return model
