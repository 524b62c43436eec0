"""Wall-clock time of named stretches."""

import time
from collections.abc import Iterable

from vision3d_engine.core.errors import EngineError


class Timer:
    """Mean duration of stretches between ``tic(key)`` and ``toc(key)``, in seconds of host time.

    The device is not waited for: time that a kernel takes shows where the host next waits.
    """

    def __init__(self) -> None:
        self._total_s: dict[str, float] = {}
        self._count: dict[str, int] = {}
        self._started: dict[str, float] = {}

    def register_timer(self, key: str) -> None:
        """Begin a key at 0, so that summaries show it."""
        self._total_s[key], self._count[key] = 0.0, 0

    def tic(self, key: str) -> None:
        """Start a stretch."""
        self._started[key] = time.perf_counter()

    def toc(self, key: str) -> None:
        """End a stretch that `tic` started."""
        now = time.perf_counter()
        if key not in self._started:
            message = f"Timer.toc('{key}') without a Timer.tic('{key}') before it"
            raise EngineError(message)
        self.add(key, now - self._started.pop(key))

    def add(self, key: str, duration_s: float) -> None:
        """Count a stretch that was measured elsewhere."""
        self._total_s[key] = self._total_s.get(key, 0.0) + duration_s
        self._count[key] = self._count.get(key, 0) + 1

    def get_time(self, key: str) -> float:
        """Return the mean duration in seconds; 0 when there was no stretch."""
        return self._total_s.get(key, 0.0) / max(self._count.get(key, 0), 1)

    def summary(self, keys: Iterable[str] | None = None) -> dict[str, float]:
        """Return the mean durations in seconds by key."""
        return {key: self.get_time(key) for key in (self._total_s if keys is None else keys)}

    def tostring(self, keys: Iterable[str] | None = None, verbose: bool = True) -> str:
        """Return ``"data: 0.010s, model: 0.200s"``, or ``"time: 0.010s/0.200s"`` when not verbose."""
        times = self.summary(keys)
        if verbose:
            return ", ".join(f"{key}: {seconds:.3f}s" for key, seconds in times.items())
        return "time: " + "/".join(f"{seconds:.3f}s" for seconds in times.values())
