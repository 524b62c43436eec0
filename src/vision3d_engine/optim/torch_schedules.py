"""Schedules of ``torch.optim.lr_scheduler`` by name, with settings as their arguments."""

import inspect
from collections.abc import Sequence
from typing import Any

from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from vision3d_engine.core.errors import ConfigError, RegistrationError, did_you_mean, listed
from vision3d_engine.optim.schedule import Schedule, Timing, WarmUp

# What settings cannot describe: functions, and other schedules.
_BY_HAND = ("LambdaLR", "MultiplicativeLR", "SequentialLR", "ChainedScheduler")
# The argument that is the length of the whole.
_LENGTHS = {"OneCycleLR": "total_steps", "CosineAnnealingLR": "T_max", "PolynomialLR": "total_iters"}
# What torch's schedules get from us, or had in older versions.
_NOT_SET = ("optimizer", "last_epoch", "verbose")
_OURS = ("type", "warmup_steps", "eta_init", "interval", "metric")


def build_by_name(optimizer: Optimizer, section: Any, others: Sequence[str] = ()) -> Schedule:
    """Build ``torch.optim.lr_scheduler.<section.type>``; what the section holds beside our own keys are its arguments.

    Args:
        optimizer: whose rates it sets.
        section: the settings ``scheduler.*``.
        others: names that are known beside torch's, for messages.

    Raises:
        ConfigError: for an unknown type or argument, a value that torch refuses, or one that is missing.
    """
    kind, arguments = _class_of(section.type, others), _arguments(section)
    if section.type == "OneCycleLR":
        arguments["max_lr"] = _peaks(optimizer, arguments.get("max_lr"))
    key = None if "steps_per_epoch" in arguments else _LENGTHS.get(section.type)
    key = None if key in arguments else key
    _check(kind, arguments, key)

    def make(steps: int | None) -> LRScheduler:
        known = arguments if steps is None else {**arguments, str(key): steps}
        try:
            return kind(optimizer, **known)
        except (TypeError, ValueError, ZeroDivisionError, AttributeError) as error:
            message = f"torch.optim.lr_scheduler.{section.type} refuses cfg.scheduler: {error} (got {known})"
            raise ConfigError(message) from error

    return Schedule(optimizer, make, length_key=key, warm_up=warm_up_of(section), timing=timing_of(section))


def _peaks(optimizer: Optimizer, max_lr: Any) -> Any:
    """Return the highest rates of a cycle: those of the parameter groups, unless others are given.

    Raises:
        ConfigError: for one peak for groups of unlike rates, whose ratio it would level out.
    """
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    if max_lr is None:
        return rates
    if not isinstance(max_lr, list | tuple) and len(set(rates)) > 1:
        message = (
            f"cfg.scheduler.max_lr is {max_lr}, one peak for {len(rates)} parameter groups with the rates "
            f"{listed(dict.fromkeys(f'{rate:g}' for rate in rates))}: leave it out, and each group's own rate is its "
            "peak, or give a list with one for each group"
        )
        raise ConfigError(message)
    return max_lr


def timing_of(section: Any) -> Timing:
    """Return when the settings ``scheduler.*`` let the schedule step.

    Raises:
        ConfigError: when they name two moments.
    """
    try:
        return Timing(section.interval, section.metric)
    except RegistrationError as error:
        raise ConfigError(f"cfg.scheduler: {error}") from error


def warm_up_of(section: Any) -> WarmUp:
    """Return the warm-up of the settings ``scheduler.*``.

    Raises:
        ConfigError: in front of a schedule that begins with one of its own.
    """
    if section.warmup_steps and section.type == "OneCycleLR":
        message = (
            f"cfg.scheduler.warmup_steps is {section.warmup_steps}, but OneCycleLR begins with a warm-up of its own: "
            "set pct_start (its share of the steps) and div_factor (where it begins) instead"
        )
        raise ConfigError(message)
    return WarmUp(section.warmup_steps, section.eta_init)


def _arguments(section: Any) -> dict[str, Any]:
    """Return what was given for torch's schedule; a named key without a value counts as left out."""
    named = {key: getattr(section, key) for key in section.model_fields_set if key in type(section).model_fields}
    given = {key: value for key, value in named.items() if key not in _OURS and value is not None}
    return given | (section.model_extra or {})


def _class_of(name: str, others: Sequence[str]) -> Any:
    kinds = {key: value for key, value in vars(lr_scheduler).items() if isinstance(value, type)}
    known = [key for key, value in kinds.items() if issubclass(value, LRScheduler) and not key.endswith("Scheduler")]
    known = [key for key in known if key not in _BY_HAND]
    if name in _BY_HAND:
        message = f"cfg.scheduler.type is '{name}', which is made of functions or of other schedules: build it in the "
        raise ConfigError(message + "script, and hand it to register_scheduler")
    if name not in known:
        names = [*others, *known]
        raise ConfigError(f"cfg.scheduler.type is '{name}'{did_you_mean(name, names)} (known are: {listed(names)})")
    return kinds[name]


def _check(kind: Any, arguments: dict[str, Any], length_key: str | None) -> None:
    """Refuse arguments that a schedule does not know, and the lack of one that it needs."""
    known = {name: each for name, each in inspect.signature(kind).parameters.items() if name not in _NOT_SET}
    for name in [name for name in arguments if name not in known]:
        hint = did_you_mean(name, [*known, *_OURS])
        message = f"cfg.scheduler.{name} is not an argument of {kind.__name__}{hint} (it has: {listed(known)})"
        raise ConfigError(message)
    needed = [name for name, each in known.items() if each.default is each.empty and name != length_key]
    if missing := [name for name in needed if name not in arguments]:
        message = f"cfg.scheduler.{missing[0]} is missing; {kind.__name__} needs it (it has: {listed(known)})"
        raise ConfigError(message)
