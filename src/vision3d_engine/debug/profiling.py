"""Print how long a block of code takes."""

import time
from types import TracebackType
from typing import Self

import torch


class RuntimeProfiler:
    """A context that prints ``description: 0.123s`` when its block ends.

    Args:
        description: what to print before the time.
        synchronize: wait for the accelerator before both readings of the clock.
    """

    def __init__(self, description: str, synchronize: bool = False) -> None:
        self.description = description
        self._synchronize = synchronize and torch.accelerator.is_available()
        self._started = 0.0

    def __enter__(self) -> Self:
        self._started = self._now()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        print(f"{self.description}: {self._now() - self._started:.3f}s")  # noqa: T201  printing is its purpose

    def _now(self) -> float:
        if self._synchronize:
            torch.accelerator.synchronize()
        return time.perf_counter()


def profile_cpu_runtime(description: str) -> RuntimeProfiler:
    """Print the host time of a ``with`` block after a description."""
    return RuntimeProfiler(description)


def profile_cuda_runtime(description: str) -> RuntimeProfiler:
    """Print the time of a block including the device's work; waits for the device before and after it."""
    return RuntimeProfiler(description, synchronize=True)
