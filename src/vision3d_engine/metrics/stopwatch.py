"""How long named parts of the work take, each without the parts inside of it."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise, takewhile
from typing import Any

import torch

# Marks that wait to be added up; bounds memory between rare log lines.
_MOST_STAMPS = 1024


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

    def timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that takes the time of each of its calls, in none of which it is called again."""

        def run(*args: Any) -> Any:
            began = self._now()
            try:
                return call(*args)
            finally:
                self._stamps += [(name, began), (self._part, self._now())]
                if len(self._stamps) > _MOST_STAMPS:
                    self.fold()

        return run

    def _now(self) -> Any:
        if not self._is_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def fold(self) -> None:
        """Add up what was measured, without waiting; what the device has not done yet is added up later."""
        done = len(self._stamps)
        if self._is_cuda:
            done = sum(1 for _ in takewhile(lambda stamp: stamp[1].query(), self._stamps))
        stamps, self._stamps = self._stamps[:done], self._stamps[max(done - 1, 0) :]
        for (name, start), (_, end) in pairwise(stamps):
            if name:
                self._seconds[name] += start.elapsed_time(end) / 1e3 if self._is_cuda else end - start

    def take(self) -> dict[str, float]:
        """Return the seconds of each part since the last call."""
        self.fold()
        seconds, self._seconds = self._seconds, defaultdict(float)
        return dict(seconds)
