"""Which steps of a run are profiled (``trainer.profile``), and what is said of them."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vision3d_engine.core.durations import parse_window
from vision3d_engine.distributed.world import World
from vision3d_engine.endpoints.capture import named_modules
from vision3d_engine.loop.progress import Progress
from vision3d_engine.loop.runner import Runner
from vision3d_engine.loop.step_marks import StepMarks

if TYPE_CHECKING:
    from vision3d_engine.debug.step_profile import StepProfile


class ProfiledSteps:
    """Profiles the steps of a window; a pass behind it, and a run without one, know nothing of it.

    Each process writes its own trace; the main process says what its own holds.

    Args:
        window: the setting; None for nothing.
        progress: the counters.
        world: the processes and the device.
        folder: where traces are written.
        log: takes a message and its level.
    """

    def __init__(
        self, window: str | None, progress: Progress, world: World, folder: Path, log: Callable[..., None]
    ) -> None:
        self._text, self._window = window, parse_window(window) if window else range(0)
        self._progress, self._world, self._folder, self._log = progress, world, folder, log
        self._profile: StepProfile | None = None
        self._first: int | None = None
        self._recorded: list[int] = []

    def watch(self, runner: Runner, marks: StepMarks, model: Any) -> None:
        """Profile those of the steps of a pass, before it begins, that lie in the window."""
        if self._first is None:
            self._first = self._progress.total_steps + 1
        if self._progress.total_steps + 1 >= self._window.stop:
            return
        plain = runner.iterate

        def iterate(iteration: int, data_dict: Any) -> None:
            step = self._progress.total_steps + 1
            with self._around(step, model, marks):
                plain(iteration, data_dict)
            if step + 1 >= self._window.stop:
                self.finish()
                runner.iterate = plain if runner.iterate is iterate else runner.iterate

        runner.iterate, runner.watched = iterate, self._with_waits

    @contextmanager
    def _around(self, step: int, model: Any, marks: StepMarks) -> Iterator[None]:
        """Warm up in a step, record it, or leave it alone."""
        if self._profile is not None:
            with self._profile.recording(step), marks.marked(self._profile.mark):
                yield
        elif self._window.start - 1 <= step < self._window.stop:
            self._profile = self._new_profile(model)
            with self._profile.warming_up():
                yield
        else:
            yield

    def _new_profile(self, model: Any) -> "StepProfile":
        from vision3d_engine.debug.step_profile import StepProfile, is_compiled  # a second to load

        return StepProfile(None if is_compiled(model) else named_modules(model), self._world.device)

    def _with_waits(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Yield batches; the wait for each that comes in the window is marked."""
        arriving, end = iter(batches), object()
        batch: Any = None
        while batch is not end:
            if self._profile is None:
                batch = next(arriving, end)
            else:
                with self._profile.mark("data"):
                    batch = next(arriving, end)
            if batch is not end:
                yield batch

    def finish(self) -> None:
        """Write the trace and say what is in it, if anything is recorded."""
        profile, self._profile = self._profile, None
        if profile is None:
            return
        profile.stop()
        self._recorded = profile.steps
        if not profile.steps:
            return
        trace = self._folder / f"profile-{profile.steps[0]}-rank{self._world.rank}.json.gz"
        profile.write_trace(trace)
        if self._world.is_main:
            self._log(profile.report(trace), "INFO")

    @contextmanager
    def running(self) -> Iterator[None]:
        """Say at the end of a block, the run, if not all of the window was profiled."""
        self._first, self._recorded = None, []
        try:
            yield
        finally:
            self.finish()
        if len(self._recorded) < len(self._window) and self._world.is_main:
            self._log(_MISSED.format(self._text, self._found(), self._made()), "WARNING")

    def _found(self) -> str:
        steps = self._recorded
        return f"the steps {steps[0]} to {steps[-1]} were profiled" if steps else "nothing was profiled"

    def _made(self) -> str:
        """Say which steps the run has made."""
        last = self._progress.total_steps
        return "no step before its end" if self._first is None else f"the steps {self._first} to {last}"


_MISSED = (
    "trainer.profile is '{}', of which {}: this run made {}, the first of which can only warm the profiler up. Choose "
    "a window inside of that"
)
