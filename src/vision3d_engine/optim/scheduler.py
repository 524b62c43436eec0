"""Learning rate schedules with linear warm-up, at the rates of the published vision3d runs.

Each is a factor on the base rate, as a function of ``n``: the number of updates done, plus one.
"""

import math
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, StepLR

from vision3d_engine.core.config import read_section, read_settings
from vision3d_engine.core.errors import ConfigError

Factor = Callable[[int], float]


def cosine_factor(n: int, total: int, warmup: int, eta_min: float) -> float:
    """Return the cosine annealing factor (Loshchilov & Hutter 2017): 1 after the warm-up, eta_min at total."""
    return eta_min + 0.5 * (1.0 - eta_min) * (1.0 + math.cos(math.pi * _progress(n, total, warmup)))


def linear_factor(n: int, total: int, warmup: int, eta_min: float) -> float:
    """Return the linear decay factor: 1 after the warm-up, eta_min at total."""
    return eta_min + (1.0 - eta_min) * (1.0 - _progress(n, total, warmup))


def exponential_factor(n: int, step_size: int, gamma: float, warmup: int, eta_min: float) -> float:
    """Return ``max(gamma ^ ((n - warmup + 1) // step_size), eta_min)``."""
    return max(gamma ** ((n - warmup + 1) // step_size), eta_min)


def _progress(n: int, total: int, warmup: int) -> float:
    """Return how much of the decay is done, from 0 at the end of the warm-up to 1 at total and after it."""
    return min((n - warmup) / (total - warmup), 1.0) if total > warmup else 1.0


def with_warmup(decay: Factor, warmup: int, eta_init: float) -> Factor:
    """Return a factor by updates done that climbs from eta_init to 1 while ``n < warmup``, then is ``decay(n)``."""

    def factor(updates: int) -> float:
        n = updates + 1
        return eta_init + (1.0 - eta_init) * n / warmup if n < warmup else decay(n)

    return factor


def build_scheduler(optimizer: Optimizer, cfg: Any) -> LRScheduler | None:
    """Build the schedule that ``cfg.scheduler.type`` names: Step, Exponential, Cosine, Linear or None.

    ``total_steps`` and ``warmup_steps`` count iterations and are divided by ``cfg.trainer.grad_acc_steps``, since the
    schedule steps once an update. ``step_size`` counts steps of the schedule itself (epochs in an EpochBasedTrainer).

    Raises:
        ConfigError: for an unknown type, or when a value that the type needs is missing.
    """
    section = read_section(cfg, "scheduler")
    if section.type is None:
        return None
    if section.type == "Step":
        _require(section, "step_size", "gamma")
        return StepLR(optimizer, section.step_size, section.gamma)
    window = read_settings(cfg)[0].trainer.grad_acc_steps
    warmup = section.warmup_steps // window
    return LambdaLR(optimizer, with_warmup(_decay(section, warmup, window), warmup, section.eta_init))


def _decay(section: Any, warmup: int, window: int) -> Factor:
    """Return the factor after the warm-up, by n."""
    eta_min = section.eta_min
    if section.type == "Exponential":
        _require(section, "step_size", "gamma")
        return lambda n: exponential_factor(n, section.step_size, section.gamma, warmup, eta_min)
    _require(section, "total_steps")
    total = section.total_steps // window
    decay = cosine_factor if section.type == "Cosine" else linear_factor
    return lambda n: decay(n, total, warmup, eta_min)


def _require(section: Any, *names: str) -> None:
    for name in names:
        if getattr(section, name) is None:
            description = type(section).model_fields[name].description
            message = f"cfg.scheduler.{name} is missing; the schedule '{section.type}' needs it: {description}"
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
    return LambdaLR(optimizer, with_warmup(lambda n: cosine_factor(n, total, warmup, eta_min), warmup, eta_init))
