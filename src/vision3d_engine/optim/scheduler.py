"""Learning rate schedules from settings: those of the published vision3d runs, and all of torch's by name.

The former have a factor on the base rate that is a function of ``n``: the number of steps done, plus one.
"""

import math
from typing import Any
from weakref import WeakKeyDictionary

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, StepLR

from vision3d_engine.core.config import read_section, read_settings
from vision3d_engine.core.errors import ConfigError, did_you_mean, listed
from vision3d_engine.core.named_parts import NamedParts
from vision3d_engine.optim.schedule import Schedule, core_of, ends_after, refuse_long_warm_up
from vision3d_engine.optim.torch_schedules import build_by_name, timing_of, warm_up_of

# The functions of schedules that were built here, for what they tell about their length.
_FUNCTIONS: WeakKeyDictionary[LRScheduler, "_WarmUp"] = WeakKeyDictionary()

_OWN = ("Step", "Exponential", "Cosine", "Linear")


class _WarmUp:
    """A factor that climbs from eta_init to 1 while ``n < warmup_steps``, then decays to eta_min."""

    def __init__(self, warmup_steps: int, eta_init: float, eta_min: float) -> None:
        self.warmup_steps, self.eta_init, self.eta_min = warmup_steps, eta_init, eta_min

    def __call__(self, last_step: int) -> float:
        """Return the factor after ``last_step`` updates."""
        n = last_step + 1
        if n < self.warmup_steps:
            return self.eta_init + (1.0 - self.eta_init) * n / self.warmup_steps
        return self._decay(n - self.warmup_steps)

    def _decay(self, steps: int) -> float:
        """Return the factor this many steps after the end of the warm-up."""
        raise NotImplementedError


class WarmUpExponentialAnnealingFunction(_WarmUp):
    """Warm-up, then ``max(gamma ^ ((n - warmup_steps + 1) // step_size), eta_min)``."""

    def __init__(
        self, warmup_steps: int, gamma: float, step_size: int, eta_init: float = 0.1, eta_min: float = 0.1
    ) -> None:
        super().__init__(warmup_steps, eta_init, eta_min)
        self.gamma, self.step_size = gamma, step_size

    def _decay(self, steps: int) -> float:
        return max(self.gamma ** ((steps + 1) // self.step_size), self.eta_min)


class WarmUpLinearAnnealingFunction(_WarmUp):
    """Warm-up, then a straight line from 1 to eta_min at total_steps."""

    def __init__(self, total_steps: int, warmup_steps: int, eta_init: float = 0.1, eta_min: float = 0.1) -> None:
        super().__init__(warmup_steps, eta_init, eta_min)
        self.total_steps, self.decay_steps = total_steps, total_steps - warmup_steps

    def _decay(self, steps: int) -> float:
        return self.eta_min + (1.0 - self.eta_min) * (1.0 - self._progress(steps))

    def _progress(self, steps: int) -> float:
        """Return how much of the decay is done, from 0 at the end of the warm-up to 1 at total_steps and after it."""
        return min(steps / self.decay_steps, 1.0) if self.decay_steps > 0 else 1.0


class WarmUpCosineAnnealingFunction(WarmUpLinearAnnealingFunction):
    """Warm-up, then cosine annealing (Loshchilov & Hutter 2017) from 1 to eta_min at total_steps."""

    def _decay(self, steps: int) -> float:
        return self.eta_min + 0.5 * (1.0 - self.eta_min) * (1.0 + math.cos(math.pi * self._progress(steps)))


def build_scheduler(optimizer: Optimizer, cfg: Any) -> LRScheduler | None:
    """Build the schedule that ``cfg.scheduler.type`` names: Step, Exponential, Cosine, Linear, torch's, or None.

    Those of torch (``torch.optim.lr_scheduler``) take all other keys as their arguments. A ``warmup_steps`` with
    ``eta_init`` is a warm-up in front of any. Lengths that are left out (``total_steps``, ``T_max`` of
    CosineAnnealingLR, ``total_iters`` of PolynomialLR) follow from the run once the schedule is registered in a
    trainer. ``interval`` and ``metric`` say when it steps, as in ``register_scheduler``.

    All lengths count steps of the schedule, but for configs as they were in 2022: without ``interval``, ``total_steps``
    and ``warmup_steps`` of Cosine, Linear and Exponential count iterations and are divided by
    ``cfg.trainer.grad_acc_steps`` (if ``total_steps`` is left out, ``warmup_steps`` is not).

    Raises:
        ConfigError: for an unknown type or argument, a value that torch refuses, or one that is missing.
    """
    section = read_section(cfg, "scheduler")
    if section.type is None:
        return None
    if section.type not in _OWN:
        return build_by_name(optimizer, section, _OWN)
    follows_run = section.type in {"Cosine", "Linear"} and section.total_steps is None
    if section.interval is None and section.metric is None and not follows_run:
        return _published(optimizer, section, section.type, read_settings(cfg)[0].trainer.grad_acc_steps)

    def make(steps: int | None) -> LRScheduler:
        if steps is None:
            return _published(optimizer, section, section.type)
        refuse_long_warm_up(section.warmup_steps, steps)
        return _published(optimizer, section.model_copy(update={"total_steps": steps}), section.type)

    warm_up = warm_up_of(section) if section.type == "Step" else None  # the others have it in their function
    key = "total_steps" if follows_run else None
    return Schedule(optimizer, make, length_key=key, warm_up=warm_up, timing=timing_of(section))


def build_warmup_lr_scheduler(optimizer: Optimizer, cfg: Any, annealing: str = "cosine") -> LRScheduler:
    """Build a schedule of annealing ``cosine``, ``linear`` or ``exponential``; ``cfg.scheduler.type`` is not read.

    Raises:
        ConfigError: for another annealing, or when a value that it needs is missing.
    """
    if annealing not in (known := ("cosine", "linear", "exponential")):
        message = f"annealing is '{annealing}'{did_you_mean(annealing, known)}; it must be one of {listed(known)}"
        raise ConfigError(message)
    window = read_settings(cfg)[0].trainer.grad_acc_steps
    return _published(optimizer, read_section(cfg, "scheduler"), annealing.capitalize(), window)


def _published(optimizer: Optimizer, section: Any, kind: str, window: int = 1) -> LRScheduler:
    """Build a schedule of the published runs whose total and warm-up are in batches, of which a window has several."""
    if kind == "Step":
        _require(section, "Step", "step_size", "gamma")
        return StepLR(optimizer, section.step_size, section.gamma)
    warmup, factors = section.warmup_steps // window, (section.eta_init, section.eta_min)
    if kind == "Exponential":
        _require(section, "Exponential", "step_size", "gamma")
        function = WarmUpExponentialAnnealingFunction(warmup, section.gamma, section.step_size, *factors)
        return _as_schedule(optimizer, function)
    _require(section, kind, "total_steps")
    function_class = WarmUpCosineAnnealingFunction if kind == "Cosine" else WarmUpLinearAnnealingFunction
    return _as_schedule(optimizer, function_class(section.total_steps // window, warmup, *factors))


def _as_schedule(optimizer: Optimizer, function: _WarmUp) -> LRScheduler:
    """Return torch's schedule; it would save an object's numbers, and a resume then win over new settings."""
    schedule = LambdaLR(optimizer, lambda updates: function(updates))  # noqa: PLW0108  see above
    _FUNCTIONS[schedule] = function
    return schedule


def schedule_name(scheduler: Any) -> str:
    """Return the class of a schedule, or of its function for one that was built here; of several by name each one's."""
    if isinstance(scheduler, NamedParts):
        return ", ".join(f"{name}: {schedule_name(part)}" for name, part in scheduler.parts.items())
    core = core_of(scheduler)
    return type(_FUNCTIONS.get(core, core) if isinstance(core, LRScheduler) else core).__name__


def schedule_hint(scheduler: Any, steps: int, unit: str) -> str | None:
    """Return a warning when a run makes far fewer or more steps of a schedule than it was built for, else None.

    Args:
        scheduler: a schedule of this module, or one of torch that knows its length.
        steps: steps of the schedule that the run makes.
        unit: what it steps with, such as ``"epoch"``.
    """
    core = core_of(scheduler)
    function = _FUNCTIONS.get(core) if core is not None else None
    total = getattr(function or core, "total_steps", None) or getattr(core, "T_max", None)
    warmup = getattr(function, "warmup_steps", 0)
    if core is not scheduler and isinstance(total, int):
        total, warmup = total + scheduler.warm_up.steps, warmup + scheduler.warm_up.steps
    if isinstance(total, int) and steps >= 2 * total and ends_after(scheduler) is None:
        then = "climbs again" if hasattr(core, "T_max") else "stays at its lowest"
        return (
            f"the learning rate schedule ({schedule_name(scheduler)}) is built for {total:,} steps, but this trainer "
            f"moves it on once an {unit}, {steps:,} times in all, so the rate {then} before the run is half over. Give "
            f"its lengths in {unit}s, or leave them out in cfg.scheduler, and they follow from the run"
        )
    if not isinstance(total, int) or (steps * 2 > total and steps > warmup):
        return None
    where = "in its warm-up" if steps <= warmup else f"after {steps / total:.1%} of it"
    return (
        f"the learning rate schedule ({schedule_name(scheduler)}) is built for {total:,} steps, but this "
        f"trainer moves it on once an {unit}, {steps:,} times in all, so the run ends {where}. Give its lengths in "
        f"{unit}s, or use a trainer that counts as it does"
    )


def _require(section: Any, kind: str, *names: str) -> None:
    for name in names:
        if getattr(section, name) is None:
            description = type(section).model_fields[name].description
            message = f"cfg.scheduler.{name} is missing; the schedule '{kind}' needs it: {description}"
            raise ConfigError(message)


def build_warmup_cosine_lr_scheduler(
    optimizer: Optimizer,
    total_steps: int,
    warmup_steps: int,
    eta_init: float = 0.1,
    eta_min: float = 0.1,
    grad_acc_steps: int = 1,
) -> LRScheduler:
    """Build a cosine schedule with warm-up from numbers instead of a config; steps count iterations."""
    total, warmup = total_steps // grad_acc_steps, warmup_steps // grad_acc_steps
    return _as_schedule(optimizer, WarmUpCosineAnnealingFunction(total, warmup, eta_init, eta_min))
