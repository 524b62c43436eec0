"""Schedules of torch by name: the curves of torch's own objects, behind a warm-up, of a length that is told later."""

import math

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from vision3d_engine import ConfigError, build_scheduler
from vision3d_engine.checkpoint.files import plain_state
from vision3d_engine.optim.schedule import Schedule

# By name: arguments, and whether torch's schedule is told the rest of the steps by its length.
KINDS = {
    "StepLR": {"step_size": 3, "gamma": 0.5},
    "MultiStepLR": {"milestones": [2, 5], "gamma": 0.5},
    "ConstantLR": {"factor": 0.5, "total_iters": 4},
    "LinearLR": {"start_factor": 1.0, "end_factor": 0.1, "total_iters": 6},
    "ExponentialLR": {"gamma": 0.8},
    "PolynomialLR": {"total_iters": 9, "power": 2.0},
    "CosineAnnealingLR": {"T_max": 9, "eta_min": 0.01},
    "CosineAnnealingWarmRestarts": {"T_0": 3, "T_mult": 2},
    "CyclicLR": {"base_lr": 0.1, "max_lr": 0.5, "step_size_up": 3},
    "OneCycleLR": {"max_lr": [0.5, 0.1], "total_steps": 12},
}
LENGTHS = {"OneCycleLR": "total_steps", "CosineAnnealingLR": "T_max", "PolynomialLR": "total_iters"}
PLATEAU = {"type": "ReduceLROnPlateau", "metric": "error"}
CLOSED = ("CosineAnnealingLR", "PolynomialLR", "CosineAnnealingWarmRestarts", "StepLR")


def sgd():
    rows = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    return torch.optim.SGD([{"params": rows[:1]}, {"params": rows[1:], "lr": 0.02}], lr=0.1, momentum=0.9)


def build(optimizer, kind, **options):
    return build_scheduler(optimizer, {"scheduler": {"type": kind, **options}})


def curve(optimizer, schedule, steps):
    """Return the rates and momenta of all groups before each step, and after the last."""
    found = [[(group["lr"], group["momentum"]) for group in optimizer.param_groups]]
    for _ in range(steps):
        optimizer.step()
        schedule.step()
        found.append([(group["lr"], group["momentum"]) for group in optimizer.param_groups])
    return found


def of_torch(kind, steps, **options):
    optimizer = sgd()
    return curve(optimizer, getattr(lr_scheduler, kind)(optimizer, **options), steps)


@pytest.mark.parametrize("kind", KINDS)
def test_a_schedule_by_name_has_the_bits_of_torchs_own(kind):
    optimizer = sgd()
    steps = 11  # the steps after which OneCycleLR of 12 has its last rate
    assert curve(optimizer, build(optimizer, kind, **KINDS[kind]), steps) == of_torch(kind, steps, **KINDS[kind])


@pytest.mark.parametrize("kind", LENGTHS)
def test_a_length_that_is_told_later_gives_the_bits_of_one_that_was_given(kind):
    given = {key: value for key, value in KINDS[kind].items() if key != LENGTHS[kind]}
    optimizer = sgd()
    schedule = build(optimizer, kind, **given)
    first = [group["lr"] for group in optimizer.param_groups]
    schedule.tell_length(10)
    assert first == [group["lr"] for group in optimizer.param_groups]
    assert curve(optimizer, schedule, 9) == of_torch(kind, 9, **given, **{LENGTHS[kind]: 10})


@pytest.mark.parametrize("kind", ["Cosine", "Linear"])
def test_a_length_that_is_told_later_gives_the_published_curve(kind):
    options = {"warmup_steps": 3, "eta_init": 0.2, "eta_min": 0.05}
    optimizer, other = sgd(), sgd()
    schedule = build(optimizer, kind, **options)
    schedule.tell_length(10)
    assert curve(optimizer, schedule, 12) == curve(other, build(other, kind, total_steps=10, **options), 12)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "OneCycleLR"])
def test_a_warm_up_climbs_to_the_first_rate_of_any_schedule_which_then_has_its_own_curve(kind):
    optimizer = sgd()
    found = curve(optimizer, build(optimizer, kind, warmup_steps=4, eta_init=0.2, **KINDS[kind]), 14)
    expected = of_torch(kind, 10, **KINDS[kind])
    for made in range(4):
        factor = 0.2 + 0.8 * made / 4
        assert [rate for rate, _ in found[made]] == pytest.approx([rate * factor for rate, _ in expected[0]])
    assert found[4:] == expected


@pytest.mark.parametrize("kind", CLOSED)
def test_a_warm_up_is_torchs_sequence_of_linear_lr_where_that_is_right(kind):
    optimizer, other = sgd(), sgd()
    found = curve(optimizer, build(optimizer, kind, warmup_steps=4, eta_init=0.2, **KINDS[kind]), 10)
    parts = [lr_scheduler.LinearLR(other, 0.2, total_iters=4), getattr(lr_scheduler, kind)(other, **KINDS[kind])]
    expected = curve(other, lr_scheduler.SequentialLR(other, parts, [4]), 10)
    assert torch.tensor(found).flatten().tolist() == pytest.approx(torch.tensor(expected).flatten().tolist())


def test_a_told_length_counts_the_warm_up_in_and_the_rate_stays_at_its_end():
    optimizer = sgd()
    schedule = build(optimizer, "CosineAnnealingLR", warmup_steps=2, eta_init=0.5)
    schedule.tell_length(6)
    rates = [groups[0][0] for groups in curve(optimizer, schedule, 9)]
    decay = [0.1 * (1 + math.cos(math.pi * step / 4)) / 2 for step in range(5)]
    assert rates == pytest.approx([0.05, 0.075, *decay, 0.0, 0.0, 0.0], abs=1e-15)


@pytest.mark.parametrize("told", [False, True])
def test_one_cycle_stays_at_the_last_rate_of_its_curve(told):
    optimizer = sgd()
    schedule = build(optimizer, "OneCycleLR", max_lr=[0.5, 0.1], **({} if told else {"total_steps": 8}))
    schedule.tell_length(8)
    found = curve(optimizer, schedule, 20)
    assert found[:8] == of_torch("OneCycleLR", 7, max_lr=[0.5, 0.1], total_steps=8)
    assert found[8:] == [found[7]] * 13
    assert found[7][0][0] == pytest.approx(0.5 / 25 / 1e4)


@pytest.mark.parametrize("made", [0, 1, 3, 4, 7])
@pytest.mark.parametrize("kind", [*KINDS, "Cosine", "Linear"])
def test_a_saved_schedule_goes_on_to_the_same_bits_in_its_warm_up_and_after_it(kind, made):
    key = LENGTHS.get(kind, "total_steps")
    options = {name: value for name, value in KINDS.get(kind, {}).items() if name != key or kind not in LENGTHS}
    options |= {} if kind == "OneCycleLR" else {"warmup_steps": 3}

    def begun(length):
        optimizer = sgd()
        schedule = build(optimizer, kind, **options)
        schedule.tell_length(length) if isinstance(schedule, Schedule) else None
        return optimizer, schedule

    whole = curve(*begun(11), 10)
    optimizer, schedule = begun(11)
    curve(optimizer, schedule, made)
    state, saved = plain_state(schedule.state_dict()), optimizer.state_dict()
    optimizer, schedule = begun(50)  # of a longer run: what was saved stays in force
    optimizer.load_state_dict(saved)
    schedule.load_state_dict(state)
    assert curve(optimizer, schedule, 10 - made) == whole[made:]


def test_a_state_of_torchs_own_object_is_taken_over_by_the_schedule_of_its_name():
    optimizer, other = sgd(), sgd()
    own = lr_scheduler.OneCycleLR(other, 0.5, 12)
    curve(other, own, 5)
    schedule = build(optimizer, "OneCycleLR", max_lr=[0.5, 0.1], total_steps=12)
    optimizer.load_state_dict(other.state_dict())
    schedule.load_state_dict(own.state_dict())
    assert curve(optimizer, schedule, 6) == curve(other, own, 6)


def test_a_rate_that_is_a_tensor_stays_the_same_object_when_the_length_is_told():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=torch.tensor(0.1))
    rate = optimizer.param_groups[0]["lr"]
    schedule = build(optimizer, "CosineAnnealingLR", warmup_steps=2, eta_init=0.5)
    schedule.tell_length(6)
    optimizer.step()
    schedule.step()
    assert optimizer.param_groups[0]["lr"] is rate
    assert rate.item() == pytest.approx(0.075)


def test_lengths_of_a_config_with_an_interval_count_steps_of_the_schedule():
    optimizer, other = sgd(), sgd()
    cosine = {"type": "Cosine", "total_steps": 12, "warmup_steps": 4, "interval": "update"}
    schedule = build_scheduler(optimizer, {"scheduler": cosine, "trainer": {"grad_acc_steps": 2}})
    assert curve(optimizer, schedule, 12) == curve(other, build(other, "Cosine", total_steps=12, warmup_steps=4), 12)


def test_a_warm_up_comes_before_step_too_where_the_interval_says_what_it_counts():
    optimizer = sgd()
    schedule = build(optimizer, "Step", step_size=2, gamma=0.5, warmup_steps=2, eta_init=0.5, interval="epoch")
    rates = [groups[0][0] for groups in curve(optimizer, schedule, 5)]
    assert rates == pytest.approx([0.05, 0.075, 0.1, 0.1, 0.05, 0.05])


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            {"type": "OneCycelLR"},
            r"type is 'OneCycelLR'; did you mean 'OneCycleLR'\? \(known are: Step, .*Plateau",
        ),
        ({"type": "LambdaLR"}, r"'LambdaLR', which is made of functions or of other schedules: build it in the script"),
        ({"type": "StepLR", "step_size": 2, "gama": 1}, r"cfg\.scheduler\.gama is not an argument of StepLR; did you"),
        ({"type": "CosineAnnealingWarmRestarts"}, r"cfg\.scheduler\.T_0 is missing; CosineAnnealingWarmRestarts needs"),
        ({"type": "MultiStepLR", "milestone": [1]}, r"milestone is not an argument .* did you mean 'milestones'"),
        ({"type": "CosineAnnealingWarmRestarts", "T_0": -3}, r"refuses cfg\.scheduler: Expected positive integer T_0"),
        (
            {"type": "OneCycleLR", "max_lr": [1, 1], "total_steps": 9, "pct_start": 2.0},
            r"refuses cfg\.scheduler: Expected",
        ),
        (
            {"type": "OneCycleLR", "max_lr": [1, 1], "warmup_steps": 5},
            r"warmup_steps is 5, but OneCycleLR begins with a ",
        ),
        (
            {**PLATEAU, "interval": "epoch"},
            r"cfg\.scheduler: a schedule has interval 'epoch' and metric 'error'",
        ),
        ({"type": "StepLR", "step_size": 2, "interval": "epochs"}, r"scheduler\.interval is 'epochs'; it must be 'upd"),
    ],
)
def test_a_wrong_schedule_of_torch_is_an_error_that_says_what_is_allowed(section, message):
    with pytest.raises(ConfigError, match=message):
        build_scheduler(sgd(), {"scheduler": section})


@pytest.mark.parametrize("kind", ["Cosine", "CosineAnnealingLR"])
def test_a_warm_up_that_takes_the_whole_run_is_an_error(kind):
    schedule = build(sgd(), kind, warmup_steps=8)
    with pytest.raises(ConfigError, match="warmup_steps is 8, but the run moves the schedule on 8 times in all"):
        schedule.tell_length(8)


def test_a_step_before_the_length_is_known_is_an_error_that_names_it():
    schedule = build(sgd(), "CosineAnnealingLR")
    with pytest.raises(ConfigError, match=r"cfg\.scheduler\.T_max is missing, and nobody has told the schedule how"):
        schedule.step()


def test_each_group_has_its_own_peak_in_a_cycle_and_one_for_unlike_groups_is_refused():
    layers = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
    groups = [{"params": list(layers[0].parameters()), "lr": 0.1}, {"params": list(layers[1].parameters()), "lr": 0.01}]
    optimizer = torch.optim.SGD(groups, lr=0.5)
    cycle = {"type": "OneCycleLR", "total_steps": 8, "pct_start": 0.25}
    schedule = build_scheduler(optimizer, {"scheduler": cycle})
    optimizer.step()
    schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.1, 0.01])
    with pytest.raises(ConfigError, match=r"one peak for 2 parameter groups with the rates .*: leave it out"):
        build_scheduler(torch.optim.SGD(groups, lr=0.5), {"scheduler": {**cycle, "max_lr": 0.3}})
    build_scheduler(optimizer, {"scheduler": {**cycle, "max_lr": [0.3, 0.2]}})
