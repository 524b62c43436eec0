"""Learning rates for several processes: the whole schedule times one factor."""

import math
from collections.abc import Iterator, Sequence
from itertools import accumulate, zip_longest
from typing import Any

from torch.optim.lr_scheduler import LRScheduler

from vision3d_engine.core.errors import ConfigError
from vision3d_engine.core.tree import describe
from vision3d_engine.optim.named_optimizers import optimizers_of
from vision3d_engine.optim.named_schedules import schedules_of

# Where torch's schedules keep absolute rates: in the optimizer's groups, and in attributes of their own.
_GROUP_KEYS = ("lr", "initial_lr", "max_lr", "min_lr", "swa_lr")
_GROUP_RATES = ("base_lrs", "max_lrs", "min_lrs", "_last_lr")
_ATTRIBUTES = (*_GROUP_RATES, "eta_min")


def scale_factor(rule: str, size: int) -> float:
    """Return the factor on the learning rate for a number of processes: by ``none``, ``linear`` or ``sqrt``.

    Linear is the rule of Goyal et al. 2017 for SGD, the square root that of Krizhevsky 2014 and for adaptive ones.
    """
    return {"none": 1.0, "linear": float(size), "sqrt": math.sqrt(size)}[rule]


def scale_learning_rate(optimizer: Any, scheduler: Any, factor: float) -> None:
    """Multiply all rates of an optimizer and its schedule, if there is one, also lower limits and peaks.

    Raises:
        ConfigError: for a schedule that is not torch's, since nobody knows where it keeps its rates.
    """
    for schedule in schedules_of(scheduler).values():
        if not isinstance(schedule, LRScheduler):
            message = (
                f"trainer.scale_lr cannot scale the schedule {describe(schedule)}, which is no "
                "torch.optim.lr_scheduler.LRScheduler: leave trainer.scale_lr at 'none' and scale its rates yourself"
            )
            raise ConfigError(message)
    for group in optimizer.param_groups:
        group |= {key: _scaled(group[key], factor) for key in _GROUP_KEYS if key in group}
    for part in _parts(scheduler):
        found = vars(part)
        found |= {name: _scaled(found[name], factor) for name in _ATTRIBUTES if name in found}


def change_learning_rates(
    optimizer: Any, scheduler: Any, before: Sequence[float | None], after: Sequence[float | None]
) -> None:
    """Base each parameter group on another rate; what a schedule has made of the old one stays in proportion.

    Limits that a schedule has for all groups (``eta_min``) stay. A schedule that is not torch's is left alone.

    Args:
        optimizer: has the groups.
        scheduler: the schedule, or None.
        before: the rate on which each group is based; None where there is no such rate.
        after: the one on which it shall be.
    """
    pairs = list(zip(before, after, strict=False))
    for group, pair in zip(optimizer.param_groups, pairs, strict=False):
        group |= {key: _rebased(group[key], *pair) for key in _GROUP_KEYS if key in group}
    starts = _starts(optimizer)
    for part in _parts(scheduler):
        found, own = vars(part), pairs[starts.get(id(vars(part).get("optimizer")), 0) :]
        found |= {name: _rebased_all(found[name], own) for name in _GROUP_RATES if isinstance(found.get(name), list)}


def _starts(optimizer: Any) -> dict[int, int]:
    """Return where the groups of each optimizer begin among those of several, by the optimizer's id."""
    optimizers = list(optimizers_of(optimizer).values())
    starts = accumulate((len(each.param_groups) for each in optimizers[:-1]), initial=0)
    return {id(each): start for each, start in zip(optimizers, starts, strict=True)}


def _rebased_all(rates: list[Any], pairs: list[tuple[float | None, float | None]]) -> list[Any]:
    """Return the rates of all groups in a new list, since a schedule may share its own with what it was loaded from."""
    known = zip_longest(rates, pairs[: len(rates)], fillvalue=(None, None))
    return [_rebased(rate, *pair) for rate, pair in known]


def _rebased(value: Any, before: float | None, after: float | None) -> Any:
    """Return a rate in the proportion to ``after`` in which it was to ``before``; nothing is in proportion to zero."""
    if before is None or after is None or before == after:
        return value
    if isinstance(value, float) and value == before:
        return after
    return value * (after / before) if before else value * 0 + after


def _scaled(value: Any, factor: float) -> Any:
    """Return rates times the factor; new objects, since groups and schedules may share one list or tensor."""
    if isinstance(value, list | tuple):
        return [_scaled(item, factor) for item in value]
    return value if value is None else value * factor


def _parts(scheduler: Any) -> Iterator[LRScheduler]:
    """Yield a schedule and, once each, those inside it, as SequentialLR and ChainedScheduler hold them."""
    waiting, seen = list(schedules_of(scheduler).values()), set()
    while waiting:
        part = waiting.pop()
        if isinstance(part, list | tuple):
            waiting += part
        elif isinstance(part, LRScheduler) and id(part) not in seen:
            seen.add(id(part))
            waiting += vars(part).values()
            yield part


class RateScaling:
    """Fits the learning rate to the number of processes, once for each optimizer.

    Args:
        rule: ``none``, ``linear`` or ``sqrt``.
    """

    def __init__(self, rule: str) -> None:
        self._rule = rule
        self._scaled: Any = None

    def apply(self, optimizer: Any, scheduler: Any, size: int) -> str | None:
        """Scale the rates of an optimizer that was not scaled yet; return what to say of it.

        Raises:
            ConfigError: for a schedule that is not torch's.
        """
        if self._rule == "none" or self._scaled is optimizer:
            return None
        before, factor = float(optimizer.param_groups[0]["lr"]), scale_factor(self._rule, size)
        scale_learning_rate(optimizer, scheduler, factor)
        self._scaled = optimizer
        result = f"{before:g} x {factor:g} = {float(optimizer.param_groups[0]['lr']):g}"
        return f"learning rate: {result} (trainer.scale_lr is {self._rule}, {size} processes); a resume keeps its own"
