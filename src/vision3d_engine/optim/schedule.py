"""A schedule of torch's with what a run adds to it: warm-up, a length that follows from the run, and when it steps."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from vision3d_engine.core.errors import ConfigError, RegistrationError, listed

INTERVALS = ("update", "epoch")
# A length that is not known yet: the first rates of torch's schedules are the same whatever the length.
_UNTOLD = 10**9


@dataclass(frozen=True)
class Timing:
    """When a schedule steps: after each update, after each epoch, or after each validation with a metric of it.

    Attributes:
        interval: ``"update"`` or ``"epoch"``; None leaves it to the trainer.
        metric: key of the validation summary whose number the schedule gets.
    """

    interval: str | None = None
    metric: str | None = None

    def __post_init__(self) -> None:
        """Refuse what is no moment."""
        if self.interval not in (None, *INTERVALS):
            message = f"the interval of a schedule is '{self.interval}'; it must be one of {listed(INTERVALS)}"
            raise RegistrationError(message)
        if self.interval and self.metric:
            message = (
                f"a schedule has interval '{self.interval}' and metric '{self.metric}'; with a metric it steps after "
                "each validation: leave the interval out"
            )
            raise RegistrationError(message)


@dataclass(frozen=True)
class WarmUp:
    """The rate climbs in a straight line from eta_init times its goal to the goal, as by torch's ``LinearLR``."""

    steps: int = 0
    eta_init: float = 0.1

    def factor(self, made: int) -> float:
        """Return the factor on the rate after this many steps."""
        return 1.0 if made >= self.steps else self.eta_init + (1.0 - self.eta_init) * made / self.steps


class Schedule(LRScheduler):
    """Torch's own schedule behind a warm-up; its length may be told later, and at the end of that it stays.

    Not torch's ``SequentialLR``: that lets schedules which go on from the present rate (``ExponentialLR``) start from
    the last rate of the warm-up instead of their own.

    Args:
        optimizer: whose rates are set.
        make: builds torch's schedule, for a number of steps if there is a `length_key`, else for None.
        length_key: the argument of torch's schedule that follows from the run; None when it has no such one, or has it.
        warm_up: what comes before its first step.
        timing: when it steps, if the trainer is not told otherwise.

    Attributes:
        inner: torch's schedule.
        last_epoch: the steps that were made, as torch calls them.
        length: the steps that were told, warm-up included; None when none were.
        warm_up: what comes before torch's schedule.
        timing: when it steps.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        make: Callable[[int | None], LRScheduler],
        *,
        length_key: str | None = None,
        warm_up: WarmUp | None = None,
        timing: Timing | None = None,
    ) -> None:
        self.optimizer, self.timing = optimizer, timing or Timing()
        self.length_key = length_key
        self.length: int | None = None
        self.last_epoch = 0
        self._make, self.warm_up = make, warm_up or WarmUp()
        self._before = _options(optimizer)
        self.inner = make(_UNTOLD if length_key else None)
        self._set_rates()
        self._untold = _options(optimizer)

    @property
    def needs_length(self) -> bool:
        """Whether the number of steps must still be told."""
        return self.length_key is not None and self.length is None

    @property
    def last_step(self) -> int | None:
        """The step after which it stays: where the length that was told ends, or torch's OneCycleLR; else None."""
        return self.length if (last := _last_step(self.inner)) is None else last

    def tell_length(self, steps: int) -> None:
        """Make it a schedule of so many steps, warm-up included; only the first word counts, and a loaded state.

        Raises:
            ConfigError: when the warm-up takes all of them, or torch refuses the number.
        """
        if not self.needs_length:
            return
        refuse_long_warm_up(self.warm_up.steps, steps)
        _put_back(self.optimizer, _changed(self._before, self._untold, self.optimizer))
        self.inner, self.length = self._make(steps - self.warm_up.steps), steps
        self._set_rates()

    def step(self, metric: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Move on by one step; with the number that a schedule on a metric follows.

        Raises:
            ConfigError: when the length has not been told.
        """
        if self.needs_length:
            message = (
                f"cfg.scheduler.{self.length_key} is missing, and nobody has told the schedule how many steps a run "
                "makes: give it, or register the schedule in a trainer, which tells it"
            )
            raise ConfigError(message)
        self.last_epoch += 1
        if self.last_epoch <= self.warm_up.steps:
            self._set_rates()
        elif self.last_step is None or self.last_epoch <= self.last_step:
            self.inner.step(*(() if metric is None else (metric,)))

    def _set_rates(self) -> None:
        """Set the rates of the warm-up, or the first ones of torch's schedule where that has ended."""
        factor = self.warm_up.factor(self.last_epoch)
        for group, rate in zip(self.optimizer.param_groups, self.inner.get_last_lr(), strict=False):
            _put(group, "lr", rate * factor)

    def get_last_lr(self) -> list[Any]:
        """Return the rates that are set."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Return the state of torch's schedule, with what is added to it."""
        own = {"steps": self.last_epoch, "length": self.length, "warm_up": asdict(self.warm_up)}
        return {**self.inner.state_dict(), **{f"schedule_{name}": value for name, value in own.items()}}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over a state; its length and warm-up win, and one of torch's schedule alone has neither."""
        state = dict(state_dict)
        made, length, warm_up = (state.pop(f"schedule_{name}", None) for name in ("steps", "length", "warm_up"))
        self.warm_up = self.warm_up if warm_up is None else WarmUp(**warm_up)
        if length is not None:
            self._change_length(length)
        self.inner.load_state_dict(state)
        self.last_epoch = self.warm_up.steps + self.inner.last_epoch if made is None else made

    def _change_length(self, length: int) -> None:
        """Be a schedule of another length; the optimizer, which has its own state, stays as it is."""
        self.length = length
        if self.length_key is not None:
            with _untouched(self.optimizer):
                self.inner = self._make(length - self.warm_up.steps)


def refuse_long_warm_up(warmup: int, steps: int) -> None:
    """Refuse a warm-up that takes all steps that the run makes.

    Raises:
        ConfigError: with both numbers.
    """
    if steps <= warmup:
        message = f"cfg.scheduler.warmup_steps is {warmup}, but the run moves the schedule on {steps} times in all"
        raise ConfigError(f"{message}; expected fewer, counted as it steps (updates or epochs)")


def _last_step(scheduler: Any) -> int | None:
    """Return the step after which torch's OneCycleLR has the last rate of its curve; one more leaves it, two raise."""
    return scheduler.total_steps - 1 if isinstance(scheduler, OneCycleLR) else None


def move_on(scheduler: Any) -> None:
    """Let a schedule make a step, unless it is at its end."""
    last = _last_step(scheduler)
    if last is None or scheduler.last_epoch < last:
        scheduler.step()


def ends_after(scheduler: Any) -> int | None:
    """Return for how many steps of a run a schedule has rates, before it stays at its last one; None for all."""
    inner = core_of(scheduler)
    length = scheduler.length if isinstance(scheduler, Schedule) else None
    return inner.total_steps if isinstance(inner, OneCycleLR) else length


def core_of(scheduler: Any) -> Any:
    """Return torch's schedule inside one of ours, or what else it is."""
    return scheduler.inner if isinstance(scheduler, Schedule) else scheduler


@contextmanager
def _untouched(optimizer: Optimizer) -> Iterator[None]:
    """Leave the options of an optimizer as they are, whatever a schedule that is built sets."""
    before = _options(optimizer)
    try:
        yield
    finally:
        _put_back(optimizer, before)


def _options(optimizer: Optimizer) -> list[dict[str, Any]]:
    """Return copies of all options of the groups."""
    groups = [[(key, value) for key, value in group.items() if key != "params"] for group in optimizer.param_groups]
    return [{key: each.clone() if isinstance(each, torch.Tensor) else each for key, each in group} for group in groups]


def _changed(before: list[dict[str, Any]], after: list[dict[str, Any]], optimizer: Optimizer) -> list[dict[str, Any]]:
    """Return the options from before of what a schedule has set and nobody has changed since."""
    found = zip(before, after, optimizer.param_groups, strict=False)
    return [
        {key: value for key, value in old.items() if value != new.get(key) and new.get(key) == group.get(key)}
        for old, new, group in found
    ]


def _put_back(optimizer: Optimizer, options: list[dict[str, Any]]) -> None:
    for group, values in zip(optimizer.param_groups, options, strict=False):
        for key, value in values.items():
            _put(group, key, value)


def _put(group: dict[str, Any], key: str, value: Any) -> None:
    """Set an option; a rate that is a tensor stays the same object, since compiled steps may hold it."""
    if isinstance(group.get(key), torch.Tensor):
        group[key].copy_(torch.as_tensor(value))
    else:
        group[key] = value
