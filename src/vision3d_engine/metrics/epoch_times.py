"""What the time of an epoch goes into."""

import time
from collections.abc import Mapping
from typing import NamedTuple

import torch

from vision3d_engine.metrics.step_clock import StepClock
from vision3d_engine.metrics.stopwatch import Stopwatch

_IN_STEPS = ("forward", "backward", "optimizer", "hooks")


class EpochShares(NamedTuple):
    """Seconds of an epoch, and which share of them each part has: ``data``, ``forward``, ..., ``other``."""

    seconds: float
    shares: dict[str, float]


class EpochTimes:
    """Adds up what an epoch does: steps from those that were measured, everything else whole.

    Args:
        device: where steps run.

    Attributes:
        measured: the parts of the steps that are measured.
        around: what is done around the steps, by the clock of the host.
    """

    def __init__(self, device: torch.device) -> None:
        self.measured, self.around = Stopwatch(device), Stopwatch()
        self._data_s = self._steps_s = 0.0
        self._began = time.perf_counter()

    def begin(self) -> None:
        """Begin to count."""
        self.take()

    def fold(self) -> None:
        """Add up what was measured so far, where the device has just been read."""
        self.measured.fold()
        self.around.fold()

    def add(self, clock: StepClock) -> None:
        """Count the steps of a pass over training data."""
        means = clock.means()
        self._data_s += means["data"] * clock.steps
        self._steps_s += means["model"] * clock.steps

    def take(self) -> EpochShares | None:
        """Return the shares since the last call; None when no step was made."""
        now, measured, around = time.perf_counter(), self.measured.take(), self.around.take()
        whole, steps_s = max(now - self._began, 1e-9), self._steps_s
        steps_s = min(steps_s, max(whole - self._data_s - sum(around.values()), 0))  # a device goes on meanwhile
        seconds = {"data": self._data_s, **_by_part(measured, steps_s), "validation": 0.0, "checkpoints": 0.0}
        seconds |= {name: seconds.get(name, 0) + time for name, time in around.items()}
        self._began, self._data_s, self._steps_s = now, 0.0, 0.0
        if not steps_s:
            return None
        seconds["other"] = max(whole - sum(seconds.values()), 0)
        return EpochShares(whole, {name: each / whole for name, each in seconds.items()})


def _by_part(measured: Mapping[str, float], seconds: float) -> dict[str, float]:
    """Return the time of all steps by part, which they share as those do that were measured."""
    whole = sum(measured.values())
    return {name: measured.get(name, 0) / whole * seconds for name in _IN_STEPS} if whole else {}
