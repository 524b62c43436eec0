"""Optimizers by name, and schedules at the published rates, computed here from their formulas."""

import math

import pytest
import torch
from easydict import EasyDict
from torch import nn

from tests.toys import ToyEpochTrainer, settings
from vision3d_engine import ConfigError, EpochBasedTrainer, build_optimizer, build_scheduler

BASE = {"warmup_steps": 4, "eta_init": 0.1, "eta_min": 0.05}


def rates(scheduler, steps=16, **trainer):
    """Return the factors that an optimizer of rate 1 sees."""
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    schedule = build_scheduler(optimizer, {"scheduler": scheduler, "trainer": trainer})
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if schedule is not None:
            schedule.step()
    return found


def formula(kind, n, warmup=4, total=12, eta_init=0.1, eta_min=0.05, gamma=0.5, step_size=3):
    if n < warmup:
        return eta_init + (1 - eta_init) * n / warmup
    if kind == "Exponential":
        return max(gamma ** ((n - warmup + 1) // step_size), eta_min)
    if n > total:
        return eta_min
    done = (n - warmup) / (total - warmup)
    part = (1 + math.cos(math.pi * done)) / 2 if kind == "Cosine" else 1 - done
    return eta_min + (1 - eta_min) * part


@pytest.mark.parametrize("kind", ["Cosine", "Linear", "Exponential"])
def test_a_schedule_has_the_published_rates(kind):
    scheduler = {"type": kind, **BASE, "total_steps": 12, "gamma": 0.5, "step_size": 3}
    assert rates(scheduler) == pytest.approx([formula(kind, updates + 1) for updates in range(16)])


def test_steps_are_counted_in_iterations_and_divided_by_the_accumulation():
    scheduler = {"type": "Cosine", **BASE, "warmup_steps": 8, "total_steps": 24}
    found = rates(scheduler, grad_acc_steps=2)
    assert found == pytest.approx([formula("Cosine", updates + 1) for updates in range(16)])


def test_step_is_torchs_own_and_none_is_none():
    assert rates({"type": "Step", "step_size": 2, "gamma": 0.1}, steps=4) == pytest.approx([1, 1, 0.1, 0.1])
    assert rates({"type": None}, steps=2) == [1.0, 1.0]


def test_a_schedule_goes_on_with_its_new_settings_after_a_resume():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    cfg = {"scheduler": {"type": "Linear", "total_steps": 10}}
    state = build_scheduler(optimizer, cfg).state_dict()
    longer = build_scheduler(optimizer, {"scheduler": {"type": "Linear", "total_steps": 100}})
    longer.load_state_dict(state)
    optimizer.step()
    longer.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 + 0.9 * 0.98)


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (
            {"type": "Cosin"},
            r"cfg\.scheduler\.type is 'Cosin'; did you mean 'Cosine'\? \(known are: Step, ",
        ),
        (
            {"type": "Cosine"},
            r"cfg\.scheduler\.total_steps is missing, and nobody has told the schedule how many ",
        ),
        ({"type": "Step", "gamma": 0.5}, r"cfg\.scheduler\.step_size is missing"),
        ({"type": "Cosine", "total_steps": 5, "warmup_steps": -1}, r"warmup_steps is -1; it must be greater than"),
    ],
)
def test_a_wrong_schedule_is_an_error_that_says_what_is_allowed(scheduler, message):
    with pytest.raises(ConfigError, match=message):
        rates(scheduler)


@pytest.mark.parametrize(
    ("kind", "options"), [("SGD", {"momentum": 0.9}), ("AdamW", {"betas": (0.8, 0.9)}), ("RAdam", {})]
)
def test_any_torch_optimizer_is_built_by_name_with_the_other_keys_as_arguments(kind, options):
    optimizer = build_optimizer(nn.Linear(2, 1), {"optimizer": {"type": kind, "lr": 0.25, **options}})
    assert type(optimizer) is getattr(torch.optim, kind)
    assert optimizer.param_groups[0]["lr"] == 0.25
    assert all(optimizer.param_groups[0][key] == pytest.approx(value) for key, value in options.items())


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"type": "Adm", "lr": 1}, r"cfg\.optimizer\.type is 'Adm'; did you mean 'Adam'\?"),
        ({"type": "SGD", "lr": 1, "momentun": 0.9}, r"momentun is not an argument of SGD; did you mean 'momentum'"),
        ({"type": "SGD", "lr": -1}, r"torch\.optim\.SGD refuses cfg\.optimizer: Invalid learning rate"),
        ({"lr": 1}, r"cfg\.optimizer\.type is missing"),
    ],
)
def test_a_wrong_optimizer_is_an_error_that_names_the_nearest(section, message):
    with pytest.raises(ConfigError, match=message):
        build_optimizer(nn.Linear(2, 1), {"optimizer": section})


@pytest.mark.parametrize("kind", ["Cosine", "Linear", "torch"])
def test_a_schedule_in_other_units_than_the_trainer_s_is_said(tmp_path, kind, capsys):
    class Plain(ToyEpochTrainer):
        scheduler_step = EpochBasedTrainer.scheduler_step

    toy = Plain(settings(tmp_path, max_epoch=3))
    section = {"scheduler": {"type": kind, "total_steps": 1000, "warmup_steps": 100}}
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR
    toy.scheduler = None
    toy.register_scheduler(cosine(toy.optimizer, 1000) if kind == "torch" else build_scheduler(toy.optimizer, section))
    toy.run()
    said = capsys.readouterr().err
    assert "is built for 1,000 steps, but this trainer moves it on once an epoch, 3 times in all, so the run " in said


def test_an_unknown_key_of_a_schedule_is_an_error_with_the_nearest_name():
    with pytest.raises(ConfigError, match=r"cfg\.scheduler\.warm_up_steps is unknown; did you mean 'warmup_steps'"):
        rates({"type": "Cosine", "total_steps": 9, "warm_up_steps": 2})
    with pytest.raises(ConfigError, match=r"cfg\.scheduler\.zebra is unknown \(cfg\.scheduler has: type, total_steps"):
        rates({"type": "Cosine", "total_steps": 9, "zebra": 2})


def test_keys_of_a_script_in_an_object_of_its_own_stay_unless_they_are_nearly_ours():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    assert build_scheduler(optimizer, EasyDict(scheduler={"type": None, "zebra": 2})) is None
    with pytest.raises(ConfigError, match=r"cfg\.scheduler\.total_step is unknown; did you mean 'total_steps'"):
        build_scheduler(optimizer, EasyDict(scheduler={"type": "Linear", "total_step": 2}))


def test_a_misspelt_section_of_a_builder_is_an_error():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(ConfigError, match=r"cfg\.schedular is unknown; did you mean 'scheduler'"):
        build_scheduler(optimizer, {"schedular": {"type": "Linear", "total_steps": 2}})
    with pytest.raises(ConfigError, match=r"cfg\.optimiser is unknown; did you mean 'optimizer'"):
        build_optimizer(nn.Linear(1, 1), EasyDict(optimiser={"type": "SGD"}))
    with pytest.raises(
        ConfigError, match=r"cfg\.optimizer\.momentom is not an argument of SGD; did you mean 'momentum'"
    ):
        build_optimizer(nn.Linear(1, 1), {"optimizer": {"type": "SGD", "lr": 0.1, "momentom": 0.9}})
