"""What the time of an epoch goes into."""

import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch

from vision3d_engine.metrics.step_clock import StepClock
from vision3d_engine.metrics.stopwatch import Stopwatch

_SHARED = ("forward", "backward", "optimizer")
_MOMENTS = ("before_", "after_")


class EpochShares(NamedTuple):
    """What an epoch has taken.

    Attributes:
        seconds: all of it.
        shares: which share of them each part has: ``data``, ``forward``, ..., ``other``.
        hooks: the same of the hooks of each moment.
    """

    seconds: float
    shares: dict[str, float]
    hooks: Mapping[str, float] = MappingProxyType({})


class EpochTimes:
    """Adds up what an epoch does: the engine's part of steps from those that were measured, everything else whole.

    Args:
        device: where steps run.

    Attributes:
        measured: the parts of the steps that are measured.
        in_steps: what only some scripts do, in only some steps: hooks, by their moment, and captures.
        around: what is done around the steps, by the clock of the host.
    """

    def __init__(self, device: torch.device) -> None:
        self.measured, self.in_steps, self.around = Stopwatch(device), Stopwatch(device), Stopwatch()
        self._data_s = self._steps_s = 0.0
        self._began = time.perf_counter()

    def begin(self) -> None:
        """Begin to count."""
        self.take()

    def fold(self) -> None:
        """Add up what was measured so far, where the device has just been read."""
        for watch in (self.measured, self.in_steps, self.around):
            watch.fold()

    def add(self, clock: StepClock) -> None:
        """Count the steps of a pass over training data."""
        means = clock.means()
        self._data_s += means["data"] * clock.steps
        self._steps_s += means["model"] * clock.steps

    def take(self) -> EpochShares | None:
        """Return the shares since the last call; None when no step was made."""
        now, measured, inside, around = (
            time.perf_counter(),
            self.measured.take(),
            self.in_steps.take(),
            self.around.take(),
        )
        whole, data_s, steps_s = max(now - self._began, 1e-9), self._data_s, self._steps_s
        self._began, self._data_s, self._steps_s = now, 0.0, 0.0
        if not steps_s:
            return None
        steps_s = min(steps_s, max(whole - data_s - sum(around.values()), 0))  # a device goes on meanwhile
        inside = _scaled(inside, min(steps_s, sum(inside.values())))
        hooks, further = _parted(inside, around)
        seconds = {"data": data_s, **_by_part(measured, steps_s - sum(inside.values())), "hooks": sum(hooks.values())}
        seconds |= {"captures": 0.0, "validation": 0.0, "checkpoints": 0.0} | further
        seconds["other"] = max(whole - sum(seconds.values()), 0)
        shares, moments = ({name: each / whole for name, each in group.items()} for group in (seconds, hooks))
        return EpochShares(whole, shares, moments)


def _by_part(measured: Mapping[str, float], seconds: float) -> dict[str, float]:
    """Return the time of all steps by part, which they share as those do that were measured."""
    parts = _scaled({name: each for name, each in measured.items() if name != "hooks"}, seconds)
    return {name: parts.get(name, 0.0) for name in _SHARED}


def _scaled(parts: Mapping[str, float], seconds: float) -> dict[str, float]:
    """Return parts of the same proportions whose sum is another one."""
    whole = sum(parts.values())
    return {name: each / whole * seconds for name, each in parts.items()} if whole else {}


def _parted(*groups: Mapping[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    """Return the times of hooks by their moment, and those of other parts."""
    parts = {name: each for group in groups for name, each in group.items()}
    hooks = {name: each for name, each in parts.items() if name.startswith(_MOMENTS)}
    return hooks, {name: each for name, each in parts.items() if name not in hooks}
