"""Learning rates for several processes, against optimizers and schedules that were built with the larger rates."""

import json
from pathlib import Path

import pytest
import torch
from torch.optim import SGD
from torch.optim import lr_scheduler as schedules
from torch.optim.swa_utils import SWALR

from tests.toys import ToyEpochTrainer, ToyIterTrainer, settings
from vision3d_engine import ConfigError, build_scheduler
from vision3d_engine.optim.lr_scaling import scale_factor, scale_learning_rate

COSINE = {"type": "Cosine", "total_steps": 10, "warmup_steps": 4, "eta_min": 0.1}


def warmed_up(optimizer, factor):
    warmup = schedules.LinearLR(optimizer, 0.25, total_iters=4)
    decay = schedules.CosineAnnealingLR(optimizer, 6, eta_min=0.001 * factor)
    return schedules.SequentialLR(optimizer, [warmup, decay], [4])


def chained(optimizer, factor):
    parts = [schedules.ConstantLR(optimizer, 0.5, 3), schedules.ExponentialLR(optimizer, 0.9)]
    return schedules.ChainedScheduler(parts, optimizer)


def by_name(optimizer, factor):
    """Behind a warm-up, and told its length before its rates are scaled, as a run does."""
    section = {"type": "CosineAnnealingLR", "eta_min": 0.001 * factor, "warmup_steps": 4, "eta_init": 0.5}
    schedule = build_scheduler(optimizer, {"scheduler": section})
    schedule.tell_length(10)
    return schedule


# Each takes an optimizer and the factor by which rates that it is told itself are larger.
SCHEDULES = {
    "none": lambda optimizer, factor: None,
    "ours": lambda optimizer, factor: build_scheduler(optimizer, {"scheduler": COSINE}),
    "lambda": lambda optimizer, factor: schedules.LambdaLR(optimizer, lambda n: 1 / (1 + n)),
    "step": lambda optimizer, factor: schedules.StepLR(optimizer, 3, 0.5),
    "polynomial": lambda optimizer, factor: schedules.PolynomialLR(optimizer, 8, 2),
    "cosine": lambda optimizer, factor: schedules.CosineAnnealingLR(optimizer, 8, eta_min=0.01 * factor),
    "restarts": lambda optimizer, factor: schedules.CosineAnnealingWarmRestarts(optimizer, 4, eta_min=0.01 * factor),
    "one cycle": lambda optimizer, factor: schedules.OneCycleLR(optimizer, [0.3 * factor, 0.6 * factor], 12),
    "cyclic": lambda optimizer, factor: schedules.CyclicLR(
        optimizer, 0.01 * factor, 0.1 * factor, 3, cycle_momentum=False
    ),
    "sequential": warmed_up,
    "chained": chained,
    "by name": by_name,
    "averaging": lambda optimizer, factor: SWALR(optimizer, 0.05 * factor, anneal_epochs=4),
}


def two_groups(factor):
    rows = [torch.nn.Parameter(torch.zeros(2)) for _ in range(2)]
    return SGD([{"params": rows[:1], "lr": 0.1 * factor}, {"params": rows[1:], "lr": 0.02 * factor}], momentum=0.9)


def rates(optimizer, schedule, steps=12):
    found = []
    for _ in range(steps):
        found.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        if schedule is not None:
            schedule.step()
    return found


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_step_of_any_schedule_has_the_rate_times_the_factor(name):
    """Bit-identical, since a factor of 4 rounds nothing."""
    expected_optimizer = two_groups(factor=4)
    expected = rates(expected_optimizer, SCHEDULES[name](expected_optimizer, 4))
    optimizer = two_groups(factor=1)
    schedule = SCHEDULES[name](optimizer, 1)
    scale_learning_rate(optimizer, schedule, 4.0)
    if schedule is not None:
        assert schedule.get_last_lr() == [group["lr"] for group in optimizer.param_groups]
    assert rates(optimizer, schedule) == expected


def test_a_plateau_schedule_reduces_down_to_the_limit_times_the_factor():
    optimizer = two_groups(factor=1)
    schedule = schedules.ReduceLROnPlateau(optimizer, factor=0.5, patience=0, min_lr=0.01)
    scale_learning_rate(optimizer, schedule, 4.0)
    for _ in range(9):
        schedule.step(1.0)
    assert [group["lr"] for group in optimizer.param_groups] == [0.04, 0.04]


def test_a_rate_that_is_a_tensor_is_scaled_once_although_groups_share_it():
    parameters = [torch.nn.Parameter(torch.zeros(2)) for _ in range(2)]
    optimizer = SGD([{"params": [parameter]} for parameter in parameters], lr=torch.tensor(0.5))
    scale_learning_rate(optimizer, schedules.StepLR(optimizer, 1, 0.5), 3.0)
    assert [float(group["lr"]) for group in optimizer.param_groups] == [1.5, 1.5]


def test_the_rules_are_the_number_of_processes_and_its_root():
    assert [scale_factor(rule, 9) for rule in ("none", "linear", "sqrt")] == [1, 9, 3]
    assert [scale_factor(rule, 1) for rule in ("none", "linear", "sqrt")] == [1, 1, 1]


# ------------------------------------------------------------------------------------------- in a trainer


def trainer_of(kind, folder, size, lr=0.1, register=("optimizer", "scheduler"), **options):
    """A toy trainer that believes to be one of so many processes, and notes the rate of every step."""
    toy = kind(settings(folder, log_steps=1, max_epoch=2, **options))
    toy._session.world.size = size
    optimizer = SGD(toy.model.parameters(), lr=lr)
    parts = {"optimizer": optimizer, "scheduler": schedules.LambdaLR(optimizer, lambda n: 1 / (1 + n))}
    toy.optimizer = toy.scheduler = None
    for name in register:
        getattr(toy, f"register_{name}")(parts[name])
    return toy


def rates_of(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["lr"] for line in lines if line["phase"] == "train"]


@pytest.mark.parametrize("kind", [ToyEpochTrainer, ToyIterTrainer])
@pytest.mark.parametrize("register", [("optimizer", "scheduler"), ("scheduler", "optimizer")])
@pytest.mark.parametrize(("rule", "lr"), [("none", 0.01), ("linear", 0.04), ("sqrt", 0.02)])
def test_a_run_has_the_rates_and_weights_of_one_that_was_given_the_larger_rate(tmp_path, kind, register, rule, lr):
    toy = trainer_of(kind, tmp_path / "scaled", 4, lr=0.01, register=register, scale_lr=rule)
    expected = trainer_of(kind, tmp_path / "plain", 4, lr=lr)
    toy.run()
    expected.run()
    assert rates_of(tmp_path / "scaled") == rates_of(tmp_path / "plain")
    assert torch.equal(toy.model.weight, expected.model.weight)


def test_the_factor_is_logged_in_one_line(tmp_path):
    toy = trainer_of(ToyEpochTrainer, tmp_path, 4, scale_lr="linear")
    toy.run()
    text = Path(toy.log_file).read_text()
    assert text.count("learning rate: 0.1 x 4 = 0.4 (trainer.scale_lr is linear, 4 processes)") == 1


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_resume_on_any_number_of_processes_keeps_the_rates_of_its_run(tmp_path, size):
    """The global batch of a resume is that of its run, so its rates are too."""
    whole = trainer_of(ToyIterTrainer, tmp_path / "whole", 4, scale_lr="linear")
    whole.run()
    first = trainer_of(ToyIterTrainer, tmp_path / "halves", 4, scale_lr="linear")
    first.before_train_epoch = lambda epoch: _stop(epoch == 2)
    with pytest.raises(KeyboardInterrupt):
        first.run()
    second = trainer_of(
        ToyIterTrainer, tmp_path / "halves", size, scale_lr="linear", resume=True, allow_changed_data=True
    )
    second.run()
    assert rates_of(tmp_path / "halves") == rates_of(tmp_path / "whole")


def test_a_script_that_loads_by_itself_before_the_run_is_not_scaled_again(tmp_path):
    first = trainer_of(ToyIterTrainer, tmp_path, 4, scale_lr="linear")
    first.run()
    second = trainer_of(ToyIterTrainer, tmp_path, 4, scale_lr="linear")
    second.load("checkpoint.pth")
    assert second.get_lr() == first.get_lr()
    second.run()
    assert second.get_lr() == first.get_lr()
    assert second.optimizer.param_groups[0]["initial_lr"] == 0.4


def test_two_runs_of_one_trainer_scale_once(tmp_path):
    toy = trainer_of(ToyEpochTrainer, tmp_path, 4, register=("optimizer",), scale_lr="linear")
    toy.register_scheduler(None)
    toy.run(only_validation=True)
    toy.run()
    assert toy.get_lr() == 0.4


def test_a_schedule_that_is_not_torch_s_is_refused(tmp_path):
    class Own:
        def step(self): ...
        def state_dict(self): ...
        def load_state_dict(self, state): ...

    toy = trainer_of(ToyEpochTrainer, tmp_path, 1, register=("optimizer",), scale_lr="sqrt")
    toy.register_scheduler(None)
    toy.register_scheduler(Own())
    with pytest.raises(ConfigError, match=r"trainer.scale_lr cannot scale the schedule .*Own.*leave trainer.scale_lr"):
        toy.run()


def _stop(now):
    if now:
        raise KeyboardInterrupt
