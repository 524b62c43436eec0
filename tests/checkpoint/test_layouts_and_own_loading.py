"""Layouts that a snapshot keeps, and states that torch loads though their names or shapes have changed."""

import copy

import pytest
import torch
from torch import nn
from torch.ao.quantization import MinMaxObserver

from tests.toys import ToyEpochTrainer, linear_model, rows_loader, settings
from vision3d_engine import CheckpointError, EpochBasedTrainer
from vision3d_engine.checkpoint.manager import CheckpointManager


class Conv(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.across = nn.Parameter(torch.randn(5, 4).t())

    def forward(self, x):
        return (self.conv(x).mean((2, 3)) @ self.across).mean(1)


class Pictures(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        return {"x": torch.randn(3, 6, 6, generator=torch.Generator().manual_seed(index))}


class Trainer(EpochBasedTrainer):
    def __init__(self, cfg, kind, broken_at=None):
        super().__init__(cfg)
        self.broken_at = broken_at
        loader = torch.utils.data.DataLoader(Pictures(), 2)
        self.register_loader(loader, loader)
        model = self.register_model(Conv().to(memory_format=torch.channels_last))
        self.register_optimizer(kind(model.parameters(), lr=0.05))

    def train_step(self, epoch, iteration, data_dict):
        return {}, {"loss": self.model(data_dict["x"]).square().mean()}

    def val_step(self, epoch, iteration, data_dict):
        return {}, {"mean": self.model(data_dict["x"]).mean()}

    def after_train_step(self, *args):
        if self.total_steps == self.broken_at:
            raise OSError(28, "broken off")


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("async_save", [True, False])
def test_channels_last_and_transposed_parameters_resume_to_the_same_bits(tmp_path, fused, async_save):
    def kind(parameters, lr):
        return torch.optim.Adam(parameters, lr=lr, fused=fused)

    cfg = {"max_epoch": 3, "save_every": "1 iteration", "async_save": async_save}
    straight = Trainer(settings(tmp_path / "straight", **cfg), kind)
    straight.run()
    with pytest.raises(OSError, match="broken off"):
        Trainer(settings(tmp_path / "broken", **cfg), kind, broken_at=6).run()
    resumed = Trainer(settings(tmp_path / "broken", **cfg, resume=True), kind)
    resumed.run()
    for expected, found in zip(straight.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(expected, found)
        assert expected.stride() == found.stride()


def test_momentum_of_another_layout_is_put_into_that_of_its_parameter(tmp_path):
    """As in a file of an engine that lost it."""
    model = Conv().to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, fused=True)
    model(torch.randn(2, 3, 6, 6)).sum().backward()
    optimizer.step()
    state = copy.deepcopy(optimizer.state_dict())
    for values in state["state"].values():
        values["exp_avg"] = values["exp_avg"].contiguous()
    torch.save({"model": model.state_dict(), "optimizer": state}, tmp_path / "old.pth")
    CheckpointManager(tmp_path).load_checkpoint("old.pth", model, optimizer)
    for parameter in model.parameters():
        assert optimizer.state[parameter]["exp_avg"].stride() == parameter.stride()


def test_a_tensor_and_its_conjugate_that_share_memory_are_both_kept(tmp_path):
    numbers = torch.tensor([1 + 2j, 3 - 1j])
    state = {"numbers": numbers, "conjugate": numbers.conj(), "negative": numbers.conj().imag}
    manager = CheckpointManager(tmp_path)
    manager.save_checkpoint("a.pth", {}, linear_model(), extra=state)
    saved = torch.load(tmp_path / "a.pth", weights_only=True)
    assert all(torch.equal(saved[name], value) for name, value in state.items())


class Growing(nn.Module):
    """Gaussians: as many as the file has."""

    def __init__(self, count):
        super().__init__()
        self.means = nn.Parameter(torch.arange(3.0 * count).reshape(count, 3))

    def load_state_dict(self, state_dict, strict=True, assign=False):
        self.means = nn.Parameter(torch.empty_like(state_dict["means"]))
        return super().load_state_dict(state_dict, strict, assign)


class ByHook(nn.Module):
    """An older name, by a hook."""

    def __init__(self, name="weight"):
        super().__init__()
        self.register_parameter(name, nn.Parameter(torch.ones(2) * (2 if name == "old" else 1)))
        self.register_load_state_dict_pre_hook(self._rename)

    @staticmethod
    def _rename(module, state_dict, *args):
        if "old" in state_dict:
            state_dict["weight"] = state_dict.pop("old")


class Extra(nn.Module):
    def __init__(self, count):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2) * count)
        self.seen = torch.arange(count)

    def get_extra_state(self):
        return self.seen

    def set_extra_state(self, state):
        self.seen = state


class ByName(nn.Module):
    """A buffer of any length, by torch's own way to load one module."""

    def __init__(self, count):
        super().__init__()
        self.register_buffer("bank", torch.arange(float(count)))

    def _load_from_state_dict(self, state_dict, prefix, *args):
        self.bank = torch.empty_like(state_dict[prefix + "bank"])
        super()._load_from_state_dict(state_dict, prefix, *args)


PAIRS = {
    "grown": (Growing(5), Growing(2)),
    "renamed by a hook": (ByHook("old"), ByHook()),
    "extra state": (Extra(4), Extra(2)),
    "own way": (nn.Sequential(ByName(7)), nn.Sequential(ByName(3))),
    "observer": (
        nn.Sequential(MinMaxObserver()),
        nn.Sequential(MinMaxObserver()),
    ),
    "lazy": (nn.Sequential(nn.Linear(3, 2)), nn.Sequential(nn.LazyLinear(2))),
}


@pytest.mark.parametrize("name", PAIRS)
def test_what_torch_loads_is_loaded(tmp_path, name):
    saved, model = PAIRS[name]
    if name == "observer":
        saved(torch.randn(4))
    manager = CheckpointManager(tmp_path)
    manager.save_checkpoint("a.pth", {}, saved)
    manager.load_checkpoint("a.pth", model)
    expected = {key.replace("old", "weight"): value for key, value in saved.state_dict().items()}
    assert expected.keys() == model.state_dict().keys()
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())


def test_a_model_that_torch_refuses_to_load_is_as_it_was(tmp_path):
    manager = CheckpointManager(tmp_path)
    manager.save_checkpoint("a.pth", {}, nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)))
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(CheckpointError, match=r"part 'model' of .*shape differs: '1.weight'"):
        manager.load_checkpoint("a.pth", model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_lazy_module_is_registered_trained_and_resumed(tmp_path):
    class Lazy(ToyEpochTrainer):
        def _register(self, train_loader, val_loader, lr):
            super()._register(train_loader, val_loader, lr)
            self.model = self.optimizer = None
            model = self.register_model(nn.LazyLinear(1).double())
            model(torch.zeros(1, 3, dtype=torch.float64))
            self.register_optimizer(torch.optim.SGD(model.parameters(), lr=lr))
            self.register_scheduler(None)

    Lazy(settings(tmp_path, max_epoch=1), rows_loader(8)).run()
    resumed = Lazy(settings(tmp_path, max_epoch=2, resume=True), rows_loader(8))
    resumed.run()
    assert resumed.epoch == 2
