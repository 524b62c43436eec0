"""How long the steps of a pass take, without waiting for the device."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

# Steps of an interval whose device time is measured; bounds memory between rare log lines.
_MAX_MEASURED = 256


class StepClock:
    """Time spent waiting for data and time spent in steps, for the whole pass and since the last log line.

    On the CPU both are host time. On CUDA the time of a step is that of its kernels, between two events that are read
    at the log line, when they have long passed.

    Args:
        device: where the steps run.
    """

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._events: list[tuple[Any, Any]] = []
        self._device_s = 0.0
        self._measured = 0
        self.steps = 0
        self.data_s = 0.0
        self.model_s = 0.0
        self.first_data_s = 0.0
        self._started = time.perf_counter()
        self._last = (0, 0.0, 0.0, self._started)

    def start(self) -> Any:
        """Mark the start of a step on the device; None on the CPU. The host does not wait."""
        return _recorded_event() if self._is_cuda and len(self._events) < _MAX_MEASURED else None

    def stop(self, started: Any) -> None:
        """Mark the end of a step that `start` has marked."""
        self._events.append((started, _recorded_event()))

    def count(self, data_s: float, model_s: float) -> None:
        """Count one step: how long it waited for its batch, and how long it kept the host busy."""
        if self.steps == 0:
            self.first_data_s = data_s
        self.steps += 1
        self.data_s += data_s
        self.model_s += model_s

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time of a block, which stands between two steps, out of all that is told."""
        began = time.perf_counter()
        yield
        away = time.perf_counter() - began
        self._started += away
        self._last = (*self._last[:3], self._last[3] + away)

    def interval(self) -> "LogInterval":
        """Return what has been measured since the last call; called where the device has just been read."""
        steps, data_s, model_s, at = self._last
        now = time.perf_counter()
        count = max(self.steps - steps, 1)
        waited_s = self.data_s - data_s
        has_started = steps > 0
        interval = LogInterval(
            data_s=waited_s / count,
            model_s=self._read_events() or (self.model_s - model_s) / count,
            rate=count / max(now - at, 1e-9),
            steady_data_s=waited_s / count if has_started else (waited_s - self.first_data_s) / max(count - 1, 1),
        )
        self._last = (self.steps, self.data_s, self.model_s, now)
        return interval

    def _read_events(self) -> float:
        """Return the mean device time of the measured steps that have ended, in seconds; 0 when there are none."""
        ended = [pair for pair in self._events if pair[1].query()]
        self._events = []
        total = sum(start.elapsed_time(end) for start, end in ended) / 1e3
        self._device_s += total
        self._measured += len(ended)
        return total / len(ended) if ended else 0.0

    def means(self) -> dict[str, float]:
        """Return the mean times of the pass, in seconds: ``data`` and ``model``."""
        self._read_events()
        steps = max(self.steps, 1)
        model_s = self._device_s / self._measured if self._measured else self.model_s / steps
        return {"data": self.data_s / steps, "model": model_s}

    def elapsed_s(self) -> float:
        """Return the time since the pass began, in seconds."""
        return time.perf_counter() - self._started


def _recorded_event() -> Any:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


class LogInterval(NamedTuple):
    """Mean times of the steps between two log lines, in seconds, and steps per second.

    ``steady_data_s`` is the mean wait for a batch without the first one of a pass, which waits for workers to start.
    """

    data_s: float
    model_s: float
    rate: float
    steady_data_s: float

    def times(self) -> dict[str, float]:
        """Return the mean times by name."""
        return {"data": self.data_s, "model": self.model_s}
