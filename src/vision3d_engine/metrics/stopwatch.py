"""How long named parts of the work take, each without the parts inside of it."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch


class Stopwatch:
    """Adds up the times of parts. On CUDA they are those of the kernels; nothing waits for them.

    Args:
        device: where the parts run; None for the time of the host.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self._is_cuda = device is not None and device.type == "cuda"
        self._part = ""
        self._stamps: list[tuple[str, Any]] = []
        self._seconds = defaultdict[str, float](float)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Take the time of a block, which is not that of the part around it."""
        outer, self._part = self._part, name
        self._stamps.append((name, self._now()))
        try:
            yield
        finally:
            self._part = outer
            self._stamps.append((outer, self._now()))

    def _now(self) -> Any:
        if not self._is_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def fold(self) -> None:
        """Add up what was measured, where the device has just been read; what it has not done yet is left out."""
        stamps, self._stamps = self._stamps, self._stamps[-1:]
        if self._is_cuda:
            stamps = [stamp for stamp in stamps if stamp[1].query()]
        for (name, start), (_, end) in pairwise(stamps):
            if name:
                self._seconds[name] += start.elapsed_time(end) / 1e3 if self._is_cuda else end - start

    def take(self) -> dict[str, float]:
        """Return the seconds of each part since the last call."""
        self.fold()
        seconds, self._seconds = self._seconds, defaultdict(float)
        return dict(seconds)
