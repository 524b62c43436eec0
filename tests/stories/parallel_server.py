"""A process of a world that trains one model in several ways of being parallel, case by case; also a script."""

import os
import time

import pytest
import torch
from torch import nn

from tests.stories.serving import serve
from vision3d_engine import EpochBasedTrainer, SingleTester, build_dataloader
from vision3d_engine.checkpoint import files
from vision3d_engine.distributed.parallel.shards import is_sharded, local_part

WRITE, UNWRITABLE = files.atomic_write, set()


class Rows(torch.utils.data.Dataset):
    def __init__(self, count):
        generator = torch.Generator().manual_seed(3)
        self.x = torch.randn(200, 3, generator=generator, dtype=torch.float64)[:count]

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return {"x": self.x[index], "y": self.x[index].sum().sin()}


class Block(nn.Module):
    """Odd sizes, so that shards are unequal; dropout draws random numbers."""

    def __init__(self, width):
        super().__init__()
        self.linear, self.dropout = nn.Linear(width, width), nn.Dropout(0.2)

    def forward(self, x):
        return x + self.dropout(torch.tanh(self.linear(x)))


class Net(nn.Module):
    def __init__(self, unused=()):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.first = nn.Linear(3, 5)
        self.blocks = nn.Sequential(Block(5), Block(5))
        self.last = nn.Linear(5, 1)
        for name in unused:
            setattr(self, name, nn.Linear(2, 1))

    def forward(self, x):
        return self.last(self.blocks(torch.tanh(self.first(self.norm(x)))))[:, 0]


class Average:
    """An exponential moving average of a model's weights, spread as these are."""

    def __init__(self, model, decay=0.9):
        self.decay, self.weights = decay, {name: each.detach().clone() for name, each in model.named_parameters()}

    @torch.no_grad()
    def update(self, model):
        for name, parameter in model.named_parameters():
            self.weights[name].lerp_(parameter, 1 - self.decay)

    def state_dict(self):
        return dict(self.weights)

    def load_state_dict(self, state):
        for name, value in state.items():
            self.weights[name].copy_(value)


class Trainer(EpochBasedTrainer):
    def __init__(self, folder, case):
        trainer = {
            "max_epoch": 1,
            "fused_optimizer": False,
            "log_steps": 2,
            "fsdp_min_params": 20,
            **case.get("trainer", {}),
        }
        super().__init__({"exp": {"output_dir": folder}, "trainer": trainer})
        self.case = case
        batch_size = case.get("batch_size", 2)
        train = build_dataloader(Rows(case.get("count", 24)), batch_size, num_workers=0, shuffle=True)
        self.register_loader(train, build_dataloader(Rows(case.get("val_count", 7)), 2, num_workers=0))
        torch.manual_seed(self._session.world.rank)  # the main process's weights count
        net = Net(case.get("unused", ()))
        self.net = net if case.get("single") else net.double()
        for name in case.get("frozen", ()):
            getattr(self.net, name).requires_grad_(False)
        model = self.register_model(self.net)
        self.register_optimizer(torch.optim.Adam(model.parameters(), lr=0.01))
        self.save_best_model_on_metric("mae", largest=False)
        self.ema = self.register_state("ema", Average(self.net)) if case.get("ema") else None
        for name, factor in case.get("generators", {}).items():
            self.register_state(name, torch.Generator().manual_seed(factor * self._session.world.rank))
        self.dtypes = set()

    def before_train_epoch(self, epoch):
        if UNWRITABLE:
            self.finish_saving()
            UNWRITABLE.clear()

    def train_step(self, epoch, iteration, data_dict):
        error = self.model(data_dict["x"].to(self.dtype)) - data_dict["y"]
        self.dtypes.add(str(error.dtype))
        loss = error.square().mean()
        for name in self.case.get("sometimes", ()) if iteration % 2 else ():
            loss = loss + getattr(self.net, name)(torch.ones(1, 2).double()).sum()
        return {}, {"loss": loss}

    @property
    def dtype(self):
        return torch.float32 if self.case.get("single") else torch.float64

    def after_backward(self, *args):
        if self._pass._update.is_complete and self.case.get("clip"):
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.case["clip"])

    def optimizer_step(self):
        super().optimizer_step()
        if self.ema is not None:
            self.ema.update(self.net)

    def after_train_step(self, *args):
        if self.total_steps == self.case.get("break_at"):
            with torch.no_grad():
                local_part(self.net.last.weight).fill_(torch.nan)
        number, at = self.case.get("signal", (0, 0))
        if self.total_steps == at:
            self._run.checkpoints.join()
            if self._session.world.is_main:
                os.kill(os.getpid(), number)
        if self.total_steps > at > 0:
            time.sleep(0.1)  # the processes need a moment to agree on where to stop

    def val_step(self, epoch, iteration, data_dict):
        return {}, {"mae": (self.model(data_dict["x"].to(self.dtype)) - data_dict["y"]).abs().mean()}

    def after_val_epoch(self, epoch, summary_dict):
        if "scores" in self.case:
            summary_dict["mae"] = self.case["scores"][epoch - 1]
        if epoch == self.case.get("unwritable", (0,))[0]:
            self.finish_saving()
            UNWRITABLE.update(self.case["unwritable"][1:])
        self.summary = dict(summary_dict)
        self.spread = all(is_sharded(parameter) for parameter in self.net.parameters())


class Weighted(Trainer):
    def loss_weight(self, data_dict, output_dict, result_dict):
        return len(data_dict["y"])


class Tester(SingleTester):
    __test__ = False  # its name is not that of a test

    def __init__(self, folder, checkpoint):
        super().__init__({"exp": {"output_dir": folder}}, checkpoint=checkpoint)
        self.register_loader(build_dataloader(Rows(7), 2, num_workers=0))
        self.register_model(Net().double())

    def test_step(self, iteration, data_dict):
        return {"error": (self.model(data_dict["x"]) - data_dict["y"]).abs()}

    def eval_step(self, iteration, data_dict, output_dict):
        return {"mae": output_dict["error"].mean()}

    def after_test_epoch(self, summary_dict):
        self.summary = dict(summary_dict)


def whole(value):
    """Return a nest with whole tensors as lists, wherever they lie; floats keep every bit."""
    if is_sharded(value):
        value = value.full_tensor()
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {key: whole(item) for key, item in value.items()}
    return [whole(item) for item in value] if isinstance(value, list | tuple) else value


def state_of(trainer):
    model = {key.removeprefix("module."): value for key, value in trainer.model.state_dict().items()}
    ema = trainer.ema.state_dict() if trainer.ema is not None else None
    return {"model": whole(model), "optimizer": whole(trainer.optimizer.state_dict()), "ema": whole(ema)}


def write_unless_full(path, *options):
    if path.name in UNWRITABLE and torch.distributed.get_rank() == 0:
        raise OSError(28, "No space left on device")
    return WRITE(path, *options)


def with_full_disk(trainer):
    """Run where this process alone finds the disk full."""

    def fail(*args):
        raise OSError(28, "No space left on device")

    from torch.distributed.checkpoint import filesystem

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(filesystem._FileSystemWriter, "write_data", fail)
        trainer.run()


def run(case):
    UNWRITABLE.clear()
    trainer = (Weighted if case.get("weighted") else Trainer)(case["folder"], case)
    if case.get("full") == trainer._session.world.rank:
        return with_full_disk(trainer)
    if case.get("kind") == "load":
        trainer.load(case["name"])
        return state_of(trainer)
    if case.get("kind") == "weights":
        trainer.load_weights(case["name"])
        return state_of(trainer)
    trainer.run()
    return state_of(trainer) | {"summary": trainer.summary, "spread": trainer.spread, "dtypes": sorted(trainer.dtypes)}


if __name__ == "__main__":
    files.atomic_write = write_unless_full
    serve(run)
