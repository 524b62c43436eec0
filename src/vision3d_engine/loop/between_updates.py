"""What may happen between two updates of a pass: schedules, validations, the end of the run, saving, stopping."""

from collections.abc import Callable, Mapping
from typing import Any

from vision3d_engine.loop.progress import Progress
from vision3d_engine.loop.runner import Runner


class BetweenUpdates:
    """Acts between the updates of one pass, alike on all processes; what is not due costs a comparison.

    Args:
        progress: the counters.
        autosave: says when to save, and acts on requests to save or stop (`run.autosave.Autosave`).
        validations: says at which update a validation is due, and makes it (`run.validations.Validations`).
        ending: says at which update the run ends (`run.ending.Ending`).
        schedule_steps: what moves schedules on after each ``"update"``, and at the end of the ``"epoch"``, if anything.
    """

    def __init__(
        self,
        progress: Progress,
        autosave: Any,
        validations: Any,
        ending: Any,
        schedule_steps: Mapping[str, Callable[[], object]],
    ) -> None:
        self.ending = ending
        self._progress, self._autosave, self._sync_point = progress, autosave, autosave.agreement.sync_point
        self._snapshots = autosave.snapshots
        self._validations, self._validate_at = validations, validations.due_at()
        self._step_schedule, self._end_schedule = (schedule_steps.get(moment) for moment in ("update", "epoch"))
        self._scheduled_at = progress.trained

    # ------------------------------------------------------------------------------------------- schedules

    def follow_schedule(self, iteration: int) -> None:
        """Move the schedule on that follows updates."""
        self._scheduled_at = iteration
        if self._step_schedule is not None:
            self._step_schedule()

    def end_schedule(self) -> None:
        """Move the schedule on that follows epochs."""
        if self._end_schedule is not None:
            self._end_schedule()

    def roll_back(self) -> None:
        """Let the schedule stand at the last update, from which another `run` goes on."""
        if self._scheduled_at < self._progress.trained:
            self.follow_schedule(self._progress.trained)

    # ------------------------------------------------------------------------------------------- in mid-epoch

    def begin(self, runner: Runner) -> None:
        """Make the validation first in which the run was killed that is resumed; it may end the run."""
        progress = self._progress
        self._snapshots.begin()
        if progress.total_steps >= self._validate_at and not progress.is_trained:
            self._validate(runner)
        if progress.trained > 0 and progress.updates >= self.ending.due_at and not progress.is_trained:
            self._cut(runner)

    def act(self, runner: Runner) -> None:
        """Validate, end the run, save or stop, where that is due in the midst of a pass."""
        if self._progress.total_steps >= self._validate_at:
            self._validate(runner)
        if self._progress.updates >= self.ending.due_at:
            self._cut(runner)
            return
        if self._progress.total_steps >= self._snapshots.due_at:
            self._snapshots.write()
        request = self._sync_point()
        if request is not None or self._progress.total_steps >= self._autosave.due_at:
            self._autosave.act(request)

    def _validate(self, runner: Runner) -> None:
        with runner.clock.paused():
            self._validations.between_updates()
        self._validate_at = self._validations.due_at()

    def _cut(self, runner: Runner) -> None:
        """End the pass; what is saved now is what a run that is extended goes on from."""
        self.ending.cut()
        self._autosave.save_or_stop()
        runner.cut()
