"""Takes the times of the parts of a few steps, so that all others cost nothing more."""

import time
from typing import Any

from vision3d_engine.loop.runner import Runner
from vision3d_engine.loop.step_marks import StepMarks
from vision3d_engine.metrics.stopwatch import Stopwatch

# A measured step costs as much more as some hundred lines of python: quick steps are measured once in so long.
_EVERY_S = 1.0


class StepSampler:
    """Measures the steps of one window of micro-batches at a time; the first step of a pass, which warms up, never.

    Args:
        runner: makes the steps.
        marks: marks their parts.
        times: takes the times.
        window: how many steps make an update.
    """

    def __init__(self, runner: Runner, marks: StepMarks, times: Stopwatch, window: int) -> None:
        self._runner, self._marks, self._times, self._window = runner, marks, times, window
        self._plain = runner.iterate
        self._left, self._next_s = 0, 0.0

    def arm(self) -> None:
        """Measure the steps that come next, unless some were measured in the second before."""
        now = time.perf_counter()
        if self._left == 0 and now >= self._next_s:
            self._plain, self._runner.iterate = self._runner.iterate, self._measure
            self._left, self._next_s = self._window, now + _EVERY_S

    def _measure(self, iteration: int, data_dict: Any) -> None:
        if self._runner.clock.steps == 0:
            self._plain(iteration, data_dict)
            return
        self._left -= 1
        if self._left == 0:
            self._runner.iterate = self._plain
        with self._marks.marked(self._times.part), self._times.part("other"):
            self._plain(iteration, data_dict)
