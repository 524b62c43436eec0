"""When schedules step in a run, and how long they are: against torch's own objects, stepped by hand."""

import json
import math

import pytest
import torch
from torch.optim import lr_scheduler

from tests.toys import linear_model, rows_loader, settings
from vision3d_engine import (
    CheckpointError,
    ConfigError,
    EpochBasedTrainer,
    IterBasedTrainer,
    RegistrationError,
    ResultError,
    build_scheduler,
)

ONE_CYCLE = {"type": "OneCycleLR", "max_lr": 0.2}


class BrokenOffError(Exception):
    """What ends a run early."""


class Noting:
    """Notes the rate of each update, may break off at one, and validates to numbers that it is given."""

    def __init__(self, cfg, loader=None, scheduler=None, break_at=None, metrics=(), **register):
        super().__init__(cfg)
        self.register_loader(rows_loader(6, 2) if loader is None else loader, rows_loader(4))
        model = self.register_model(linear_model())
        self.register_optimizer(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
        made = scheduler(self.optimizer) if callable(scheduler) else None
        made = build_scheduler(self.optimizer, {**cfg, "scheduler": scheduler}) if isinstance(scheduler, dict) else made
        self.register_scheduler(made, **register)
        self.first_rate = self.get_lr()
        self.rates, self.break_at, self.metrics = [], break_at, metrics

    def train_step(self, epoch, iteration, data_dict):
        error = self.model(data_dict["x"])[:, 0] - data_dict["y"]
        return {}, {"loss": error.square().mean()}

    def val_step(self, epoch, iteration, data_dict):
        return {}, {"mae": (self.model(data_dict["x"])[:, 0] - data_dict["y"]).abs().mean()}

    def after_val_epoch(self, epoch, summary_dict):
        if self.metrics:
            summary_dict["score"] = self.metrics[epoch - 1]

    def optimizer_step(self, name=None):
        if len(self.rates) == self.break_at:
            raise BrokenOffError
        self.rates.append(self.get_lr())
        super().optimizer_step(name)


class Epochs(Noting, EpochBasedTrainer):
    pass


class Iterations(Noting, IterBasedTrainer):
    pass


def by_hand(make, steps, repeat=1):
    """Return the rates of a schedule of torch that is stepped by hand, each for so many updates."""
    optimizer = torch.optim.SGD(linear_model().parameters(), lr=0.1, momentum=0.9)
    schedule, rates = make(optimizer), []
    for step in range(steps):
        rates += [optimizer.param_groups[0]["lr"]] * repeat
        optimizer.step()
        if step < steps - 1:
            schedule.step()
    return rates


def one_cycle(total):
    return lambda optimizer: lr_scheduler.OneCycleLR(optimizer, 0.2, total)


def run(kind, folder, **options):
    options = {"scheduler": ONE_CYCLE, **options}
    own = {key: options.pop(key) for key in (*Options, *Register) if key in options}
    trainer = kind(settings(folder, **{"max_epoch": 4, **options}), **own)
    trainer.run()
    return trainer


Options = ("loader", "scheduler", "break_at", "metrics")
Register = ("name", "interval", "metric")


# ------------------------------------------------------------------------------------------- lengths


@pytest.mark.parametrize("kind", [Epochs, Iterations])
@pytest.mark.parametrize("window", [1, 2, 3, 4])
@pytest.mark.parametrize("batches", [3, 4])
def test_the_length_of_a_schedule_of_updates_follows_from_epochs_batches_and_windows(kind, window, batches, tmp_path):
    trainer = run(kind, tmp_path, loader=rows_loader(2 * batches), grad_acc_steps=window, interval="update")
    updates = 4 * math.ceil(batches / window)
    assert trainer.rates == by_hand(one_cycle(updates), updates)
    assert trainer.first_rate == trainer.rates[0]
    assert trainer.get_lr() == trainer.rates[-1], "it stays at the last rate of the curve"


def test_the_length_is_that_of_the_iterations_that_are_called_an_epoch(tmp_path):
    trainer = run(Iterations, tmp_path, num_iters_per_epoch=5, grad_acc_steps=2)
    assert trainer.rates == by_hand(one_cycle(12), 12)


def test_a_schedule_that_steps_once_an_epoch_has_as_many_steps_as_epochs(tmp_path):
    trainer = run(Epochs, tmp_path / "own")
    assert trainer.rates == by_hand(one_cycle(4), 4, repeat=3)
    trainer = run(Iterations, tmp_path / "other", interval="epoch", scheduler={"type": "CosineAnnealingLR"})
    assert trainer.rates == by_hand(lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, 4), 4, repeat=3)


@pytest.mark.parametrize("kind", [Epochs, Iterations])
def test_the_published_curves_take_the_length_of_the_run_and_the_interval_of_the_settings(kind, tmp_path):
    cosine = {"type": "Cosine", "warmup_steps": 3, "eta_init": 0.25, "eta_min": 0.0, "interval": "update"}
    trainer = run(kind, tmp_path, scheduler=cosine, grad_acc_steps=2)

    def factor(n):
        return 0.25 + 0.75 * n / 3 if n < 3 else (1 + math.cos(math.pi * (n - 3) / 5)) / 2

    assert trainer.rates == pytest.approx([0.1 * factor(done + 1) for done in range(8)], abs=1e-15)


def test_a_scheduler_that_is_registered_before_the_loader_gets_its_length_when_the_run_starts(tmp_path):
    class Late(Iterations):
        def __init__(self, cfg):
            super().__init__(cfg)
            self.train_loader = None
            self.register_scheduler(build_scheduler(self.optimizer, {"scheduler": ONE_CYCLE}))
            self.late_rate = self.get_lr()
            self.register_loader(rows_loader(), rows_loader(4))

    trainer = Late(settings(tmp_path, max_epoch=4))
    trainer.run()
    assert trainer.late_rate == trainer.rates[0]
    assert trainer.rates == by_hand(one_cycle(12), 12)


class NoLength:
    def __iter__(self):
        return iter(rows_loader())


def test_a_loader_without_a_length_is_an_error_that_says_what_to_give(tmp_path):
    message = r"cfg\.scheduler\.total_steps is missing, and how many updates .* unknown, .* give it, or step by"
    with pytest.raises(ConfigError, match=message):
        run(Epochs, tmp_path / "update", loader=NoLength(), interval="update")
    assert run(Epochs, tmp_path / "epoch", loader=NoLength()).rates == by_hand(one_cycle(4), 4, repeat=3)


def test_the_last_window_of_a_loader_without_a_length_moves_a_schedule_of_updates_too(tmp_path):
    step = {"type": "StepLR", "step_size": 1, "gamma": 0.5, "interval": "update"}
    trainer = run(Epochs, tmp_path, loader=NoLength(), scheduler=step, grad_acc_steps=2, max_epoch=2)
    assert trainer.rates == [0.1, 0.05, 0.025, 0.0125]


# ------------------------------------------------------------------------------------------- resume


@pytest.mark.parametrize("kind", [Epochs, Iterations])
@pytest.mark.parametrize("break_at", [1, 2, 4, 5])
@pytest.mark.parametrize("section", [ONE_CYCLE, {"type": "ExponentialLR", "gamma": 0.7, "warmup_steps": 3}], ids=str)
def test_a_run_that_broke_off_goes_on_with_the_same_bits(kind, break_at, section, tmp_path):
    case = {"scheduler": section, "interval": "update", "grad_acc_steps": 2, "save_every": "1 iteration"}
    straight = run(kind, tmp_path / "straight", **case)
    with pytest.raises(BrokenOffError):
        run(kind, tmp_path / "broken", **case, break_at=break_at)
    resumed = run(kind, tmp_path / "broken", **case, resume=True)
    assert resumed.rates == straight.rates[break_at:]
    assert torch.equal(resumed.model.weight, straight.model.weight)


def test_a_run_that_is_extended_keeps_its_length_stays_at_the_last_rate_and_says_so_once(tmp_path, capsys):
    run(Iterations, tmp_path, max_epoch=2)
    assert "after its end" not in capsys.readouterr().err
    longer = run(Iterations, tmp_path, max_epoch=4, resume=True)
    assert longer.rates == [by_hand(one_cycle(6), 6)[-1]] * 6
    assert (
        capsys.readouterr().err.count("(OneCycleLR) has 6 steps, and this run moves it on 12 times: after its end") == 1
    )


@pytest.mark.parametrize("name", [None, "only"])
def test_torchs_own_one_cycle_of_a_run_that_is_extended_stays_and_says_so(name, tmp_path, capsys):
    run(Iterations, tmp_path, max_epoch=2, scheduler=one_cycle(6), name=name)
    longer = run(Iterations, tmp_path, max_epoch=4, scheduler=one_cycle(6), name=name, resume=True)
    assert longer.rates == [by_hand(one_cycle(6), 6)[-1]] * 6
    assert "has 6 steps, and this run moves it on 12 times" in capsys.readouterr().err


def test_a_run_that_is_broken_off_and_extended_finishes_the_curve_that_it_began(tmp_path):
    with pytest.raises(BrokenOffError):
        run(Iterations, tmp_path, max_epoch=2, save_every="1 iteration", break_at=3)
    longer = run(Iterations, tmp_path, max_epoch=3, resume=True)
    curve = by_hand(one_cycle(6), 6)
    assert longer.rates == [*curve[3:], *curve[-1:] * 3]


# ------------------------------------------------------------------------------------------- metrics

PLATEAU = {"type": "ReduceLROnPlateau", "factor": 0.5, "patience": 0, "mode": "max"}
SCORES = (1.0, 2.0, 1.5, 3.0, 2.5, 2.0)


def plateau_by_hand(scores):
    optimizer = torch.optim.SGD(linear_model().parameters(), lr=0.1)
    schedule, rates = lr_scheduler.ReduceLROnPlateau(optimizer, "max", 0.5, 0), []
    for score in scores:
        rates.append(optimizer.param_groups[0]["lr"])
        schedule.step(score)
    return rates


@pytest.mark.parametrize("kind", [Epochs, Iterations])
@pytest.mark.parametrize("key", ["score", "val/score"])
def test_a_schedule_on_a_metric_steps_after_each_validation_with_its_number(kind, key, tmp_path):
    trainer = run(kind, tmp_path, scheduler={**PLATEAU, "metric": key}, metrics=SCORES, max_epoch=6)
    assert trainer.rates[::3] == plateau_by_hand(SCORES)


def test_torchs_own_object_takes_a_metric_by_name_too(tmp_path):
    def make(optimizer):
        return lr_scheduler.ReduceLROnPlateau(optimizer, "max", 0.5, 0)

    trainer = run(Epochs, tmp_path, scheduler=make, metric="score", metrics=SCORES, max_epoch=6)
    assert trainer.rates[::3] == plateau_by_hand(SCORES)


def test_a_metric_of_nan_leaves_the_schedule_where_it_is_and_is_said(tmp_path, capsys):
    scores = (1.0, math.nan, 2.0, 1.0, 1.0)
    trainer = run(Epochs, tmp_path, scheduler=PLATEAU, metric="score", metrics=scores, max_epoch=5)
    assert trainer.rates[::3] == [0.1, 0.1, 0.1, 0.1, 0.05]
    assert "'score', which the schedule ReduceLROnPlateau follows, is NaN" in capsys.readouterr().err


def test_a_metric_that_no_validation_has_is_an_error_with_the_nearest_name(tmp_path):
    with pytest.raises(ResultError, match=r"metric='maee'\): the validation summary has no number 'maee'; did"):
        run(Epochs, tmp_path, scheduler=PLATEAU, metric="maee")


def test_a_validation_alone_moves_no_schedule_on(tmp_path):
    trainer = Epochs(settings(tmp_path), scheduler=PLATEAU, metric="score", metrics=SCORES)
    trainer.run(only_validation=True)
    assert trainer.scheduler.last_epoch == 0


@pytest.mark.parametrize(
    ("scheduler", "register", "message"),
    [
        (
            {"type": "StepLR", "step_size": 2},
            {"metric": "mae"},
            r"StepLR takes no metric \(got metric='mae'\), only",
        ),
        (PLATEAU, {}, r"ReduceLROnPlateau needs a metric: register_scheduler\(scheduler, metric='loss'\)"),
        (PLATEAU, {"metric": "mae", "interval": "epoch"}, "with a metric it steps after each validation: leave the"),
        ({"type": "StepLR", "step_size": 2}, {"interval": "step"}, "interval of a schedule is 'step'; it must be one"),
    ],
)
def test_a_moment_that_makes_no_sense_is_an_error(scheduler, register, message, tmp_path):
    with pytest.raises(RegistrationError, match=message):
        Epochs(settings(tmp_path), scheduler=scheduler, **register)


# ------------------------------------------------------------------------------------------- several by name


class Pair(EpochBasedTrainer):
    """Two optimizers, each with a schedule at a moment of its own."""

    def __init__(self, cfg, names=("encoder", "head"), metric="mae"):
        super().__init__(cfg)
        self.register_loader(rows_loader(6, 2), rows_loader(4))
        first, second = (self.register_model(linear_model(), name=name) for name in ("a", "b"))
        makes = (lambda opt: lr_scheduler.ExponentialLR(opt, 0.5), lambda opt: lr_scheduler.StepLR(opt, 1, 0.5))
        for name, model, rate in zip(names, (first, second), (0.1, 0.2), strict=True):
            self.register_optimizer(torch.optim.SGD(model.parameters(), lr=rate), name=name)
        optimizers = [self.optimizer[name] for name in names]
        self.register_scheduler(makes[0](optimizers[0]), name=names[0], interval="update")
        self.register_scheduler(makes[1](optimizers[1]), name=names[1])
        plateau = lr_scheduler.ReduceLROnPlateau(optimizers[1], "max", 0.1, 0)
        self.register_scheduler(plateau, name="plateau", metric=metric)
        self.rates = []

    def train_step(self, epoch, iteration, data_dict):
        self.rates.append(tuple(group["lr"] for group in self.optimizer.param_groups))
        error = self.model["a"](data_dict["x"])[:, 0] + self.model["b"](data_dict["x"])[:, 0] - data_dict["y"]
        return {}, {"loss": error.square().mean()}

    def val_step(self, epoch, iteration, data_dict):
        return {}, {"mae": torch.tensor(1.0 / epoch)}


def test_schedules_with_names_step_each_at_its_own_moment(tmp_path):
    pair = Pair(settings(tmp_path, max_epoch=3))
    pair.run()
    assert [first for first, _ in pair.rates] == pytest.approx([0.1 * 0.5**update for update in range(9)])
    # once an epoch by 0.5, and by 0.1 after the second validation, which is worse than the first
    assert [second for _, second in pair.rates[::3]] == pytest.approx([0.2, 0.1, 0.005])
    assert pair.scheduler["encoder"].last_epoch == 9
    with pytest.raises(RegistrationError, match=r"there is no scheduler 'heads'; did you mean 'head'"):
        pair.scheduler["heads"]


def test_schedules_with_names_are_in_the_checkpoint_by_name_and_go_on_to_the_same_bits(tmp_path):
    straight = Pair(settings(tmp_path / "straight", max_epoch=4))
    straight.run()
    Pair(settings(tmp_path / "run", max_epoch=2)).run()
    state = torch.load(tmp_path / "run/checkpoints/checkpoint.pth", weights_only=True)
    assert set(state["scheduler"]) == {"encoder", "head", "plateau"}
    assert state["asked"]["schedule"] == "encoder: ExponentialLR, head: StepLR, plateau: ReduceLROnPlateau"
    resumed = Pair(settings(tmp_path / "run", max_epoch=4, resume=True))
    resumed.run()
    assert resumed.rates == straight.rates[6:]


def test_a_checkpoint_of_other_names_or_another_schedule_is_an_error_that_names_the_part(tmp_path):
    Pair(settings(tmp_path)).run()
    other = Pair(settings(tmp_path, max_epoch=2, resume=True), names=("encoder", "heads"))
    with pytest.raises(CheckpointError, match=r"part 'optimizer' of .* has encoder, head, but the script has"):
        other.run()
    path = tmp_path / "checkpoints/checkpoint.pth"
    state = torch.load(path, weights_only=True)
    state["scheduler"]["head"] = 5
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=r"part 'scheduler 'head'' of .* does not fit"):
        Pair(settings(tmp_path, max_epoch=2, resume=True)).run()


def test_the_scripts_rates_after_a_resume_are_those_of_each_optimizers_own_schedule(tmp_path):
    Pair(settings(tmp_path, max_epoch=1)).run()

    class Changed(Pair):
        def register_optimizer(self, optimizer, name=None, **limits):
            for group in optimizer.param_groups:
                group["lr"] *= 10 if name == "head" else 1
            super().register_optimizer(optimizer, name, **limits)

    changed = Changed(settings(tmp_path, max_epoch=2, resume=True, on_resume="config"))
    changed.run()
    assert changed.rates[0] == pytest.approx((0.1 * 0.5**3, 2.0 * 0.5))
    assert changed.rates[-1] == pytest.approx((0.1 * 0.5**5, 2.0 * 0.5))
    assert changed.scheduler["head"].base_lrs == pytest.approx([2.0])


def test_a_second_schedule_without_a_name_is_an_error_and_the_same_one_again_is_not(tmp_path):
    trainer = Epochs(settings(tmp_path), scheduler={"type": "StepLR", "step_size": 1})
    trainer.register_scheduler(trainer.scheduler, interval="update")
    with pytest.raises(RegistrationError, match=r"got a second scheduler, ConstantLR, .*name='generator'"):
        trainer.register_scheduler(lr_scheduler.ConstantLR(trainer.optimizer))
    with pytest.raises(RegistrationError, match=r"got a second scheduler"):
        trainer.register_scheduler(lr_scheduler.ConstantLR(trainer.optimizer), name="second")


def test_a_schedule_that_two_names_share_and_a_name_that_is_taken_are_errors(tmp_path):
    trainer = Epochs(settings(tmp_path), scheduler={"type": "StepLR", "step_size": 1}, name="first")
    with pytest.raises(RegistrationError, match="the scheduler 'first' is registered already"):
        trainer.register_scheduler(trainer.scheduler["first"], name="second")
    with pytest.raises(RegistrationError, match="the scheduler 'first' is registered already"):
        trainer.register_scheduler(lr_scheduler.ConstantLR(trainer.optimizer), name="first")


# ------------------------------------------------------------------------------------------- scripts of before


@pytest.mark.parametrize(("kind", "calls"), [(Epochs, 4), (Iterations, 12)])
def test_an_overridden_scheduler_step_is_called_at_the_trainers_moment_with_the_users_own_object(kind, calls, tmp_path):
    class Script(kind):
        called = 0

        def scheduler_step(self):
            self.called += 1
            super().scheduler_step()

    made = []

    def make(optimizer):
        made.append(lr_scheduler.StepLR(optimizer, 1, 0.9))
        return made[0]

    trainer = run(Script, tmp_path, scheduler=make)
    assert trainer.called == calls
    assert trainer.scheduler is made[0]
    assert trainer.scheduler.last_epoch == calls
    state = torch.load(tmp_path / "checkpoints/checkpoint.pth", weights_only=True)["scheduler"]
    assert state["last_epoch"] == calls
    assert state["step_size"] == 1


def test_an_overridden_scheduler_step_may_hand_over_a_metric_itself(tmp_path):
    class Script(Epochs):
        def scheduler_step(self):
            self.scheduler.step(1.0)

    trainer = run(Script, tmp_path, scheduler={**PLATEAU, "patience": 1})
    assert trainer.rates[::3] == pytest.approx([0.1, 0.1, 0.1, 0.05])


def test_the_rate_of_the_settings_is_logged_with_each_update(tmp_path):
    trainer = run(Iterations, tmp_path, log_steps=1)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["lr"] for line in lines if line["phase"] == "train"] == trainer.rates
