"""Print how long a block of code takes."""

import time
from typing import Self

import torch


class CpuRuntimeProfiler:
    """A context that prints ``description: 0.123s``, the host time of its block, when the block ends."""

    def __init__(self, description: str) -> None:
        self.description = description
        self.last_time = 0.0

    def __enter__(self) -> Self:
        self.last_time = self._now()
        return self

    def __exit__(self, *_: object) -> None:
        print(f"{self.description}: {self._now() - self.last_time:.3f}s")  # noqa: T201  printing is its purpose

    def _now(self) -> float:
        return time.perf_counter()


class CudaRuntimeProfiler(CpuRuntimeProfiler):
    """The same with the device's work in it: waits for the accelerator, if there is one, before and after the block."""

    def _now(self) -> float:
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        return super()._now()


def profile_cpu_runtime(description: str) -> CpuRuntimeProfiler:
    """Print the host time of a ``with`` block after a description."""
    return CpuRuntimeProfiler(description)


def profile_cuda_runtime(description: str) -> CudaRuntimeProfiler:
    """Print the time of a block including the device's work; waits for the device before and after it."""
    return CudaRuntimeProfiler(description)
