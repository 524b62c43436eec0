"""When ``checkpoint.pth`` is written: by cadence, on request, after an epoch, at a stop; and what a failure means."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from vision3d_engine.checkpoint.files import amend_checkpoint
from vision3d_engine.checkpoint.manager import NEWEST, CheckpointManager
from vision3d_engine.core.durations import parse_cadence
from vision3d_engine.core.errors import EngineError, FolderError
from vision3d_engine.distributed.coordination.agreement import Agreement
from vision3d_engine.loop.context import PassContext
from vision3d_engine.run.capsules import Capsules
from vision3d_engine.run.resume_state import ResumeState
from vision3d_engine.run.run_folder import remove_overwritten
from vision3d_engine.run.snapshots import Snapshots
from vision3d_engine.run.stopping import alarm, end_program, is_stop, reason_of, requeue

_SAVE = "save"
# Signals to the processes of a group arrive one after the other.
_SIGNAL_S = 1.0


class Autosave:
    """Saves a training run, and stops it where it is asked to.

    Args:
        trainer: whose model, optimizer and schedule are saved.
        context: settings, processes, counters.
        checkpoints: writes the files.
        folder: the checkpoint folder.
        resume_state: what a file holds beside them, so that a run can be resumed.
        agreement: lets all processes act at the same update.

    Attributes:
        due_at: number of total steps from which on an update shall call `act`.
        snapshots: the files that replays start from.
        capsules: single steps in files.
    """

    def __init__(
        self,
        trainer: Any,
        context: PassContext,
        checkpoints: CheckpointManager,
        folder: Path,
        resume_state: ResumeState,
        agreement: Agreement,
    ) -> None:
        self.agreement = agreement
        self.due_at = math.inf
        self._trainer, self._context = trainer, context
        self._checkpoints, self._folder = checkpoints, folder
        self._resume_state = resume_state
        self._number, self._unit = parse_cadence(context.settings.save_every)
        self._failure: EngineError | None = None
        self.snapshots = Snapshots(context, folder, self.save_full)
        self.capsules = Capsules(trainer, context, resume_state)
        self.restart_cadence()

    # ------------------------------------------------------------------------------------------- when

    def restart_cadence(self) -> None:
        """Count from now on to the next save."""
        if self._unit == "iteration":
            every = int(self._number)
            self.due_at = (self._context.progress.total_steps // every + 1) * every

    def act(self, request: str | None) -> None:
        """Save, and stop when that was asked for; called by all processes at the same update.

        Args:
            request: what all processes carry out now; None when the cadence has come.
        """
        if request is None and self._unit == "second":
            self._ask_all()
            return
        self.save_newest()
        if is_stop(request):
            self._stop(str(request))

    def _ask_all(self) -> None:
        """Ask all processes to save, since their clocks differ."""
        self.due_at = math.inf
        if self.agreement.pending is None:
            self.agreement.request(_SAVE)

    def save_or_stop(self) -> None:
        """Save before a validation, so that one that fails costs no training; stop there if that was asked for."""
        self.act(self.agreement.sync_point() or _SAVE)

    def after_epoch(self, is_last: bool) -> None:
        """Save after the validation; with a cadence of several epochs only after these, and after the last."""
        if self._unit != "epoch" or self._context.progress.epoch % int(self._number) == 0 or is_last:
            self.save_newest()

    def note_ending(self, ending: Mapping[str, Any]) -> None:
        """Note in ``checkpoint.pth`` how far the end of the run is: its cut epoch is closed, a request is carried out.

        All else in it stays as it was, whatever hooks and schedules have made of the closing of a cut epoch since, so
        that a run that is extended goes on as one that was never ended there.

        Args:
            ending: what a resume shall know of the end.
        """
        self._checkpoints.wait()
        if not self._context.world.is_main:
            return
        entries = {"ending": dict(ending), "ckpt_manager": self._checkpoints.state_dict()}
        entries["closed_logs"] = self._context.writers.positions()
        try:
            amend_checkpoint(self._folder / NEWEST, self._trainer.metadata, entries)
        except FolderError as error:
            self._failure = error
            self._trainer.log(error, level="ERROR")

    def stop_if_asked(self) -> None:
        """Stop at a moment after which nothing has to be saved; called by all processes."""
        request = self.agreement.sync_point()
        if is_stop(request):
            self._stop(str(request))
        if request == _SAVE:  # at the next update
            self._ask_all()

    def stop_without_data(self) -> None:
        """Stop at the last update when a worker has died and a stop is on its way: who asks may ask all processes.

        Several processes would have to agree on an update that this one cannot reach.
        """
        patience = time.monotonic() + _SIGNAL_S
        while self.agreement.is_alone and time.monotonic() < patience:
            if is_stop(self.agreement.pending) and is_stop(request := self.agreement.sync_point()):
                self.act(request)
            time.sleep(_SIGNAL_S / 50)

    def _stop(self, request: str) -> NoReturn:
        """End the program once the files are written.

        Raises:
            EngineError: when the last one could not be; then the files of before are whole.
        """
        self.finish()
        context, progress = self._context, self._context.progress
        where = f"epoch {progress.epoch}, iteration {progress.trained}, total_steps {progress.total_steps}"
        reason = reason_of(request)
        self._trainer.log(f"{reason}: stopped; '{NEWEST}' is saved ({where}). Go on with --resume", level="WARNING")
        if context.settings.requeue and context.world.is_main and (answer := requeue(request)):
            self._trainer.log(answer)
        end_program(request)

    # ------------------------------------------------------------------------------------------- how

    def save_newest(self) -> None:
        """Write ``checkpoint.pth`` with everything that a resume needs; to be called by all processes."""
        self.save_full(NEWEST)
        for line in self._resume_state.unsaved.said():
            self._trainer.log(line)
        self.restart_cadence()

    def save_full(self, filename: str, then: Callable[[], object] = lambda: None) -> None:
        """Write a file with everything that a resume needs; to be called by all processes.

        Args:
            filename: its name.
            then: called once it is on the disk; may be called by a thread.
        """
        self.save(filename, with_states=True, extra=self._resume_state.state(), then=then)

    def save(
        self,
        filename: str,
        with_states: bool,
        extra: Mapping[str, Any] | None = None,
        then: Callable[[], object] = lambda: None,
    ) -> None:
        """Save; a full disk, or weights that are not finite, leave the old file and a warning."""
        trainer = self._trainer
        parts: dict[str, Any] = {"save_ckpt_manager": with_states, "extra": extra}
        parts |= {"optimizer": trainer.optimizer, "scheduler": trainer.scheduler} if with_states else {}
        try:
            with self._context.times.around.part("checkpoints"):
                self._checkpoints.save_checkpoint(
                    filename, trainer.metadata, trainer.model, on_saved=partial(self._saved, filename, then), **parts
                )
        except FolderError as error:
            self._failure = error
            trainer.log(f"{error}. Training goes on", level="ERROR")
        else:
            self._failure = None

    def _saved(self, filename: str, then: Callable[[], object]) -> None:
        """Say that a file is on the disk, and let go of what it replaces; may be called by a thread."""
        self._context.logger.debug(f"saved {filename}")
        if filename == NEWEST and self._context.world.is_main:
            remove_overwritten(self._folder)
        then()

    def save_best(self, scores: Mapping[str, float]) -> None:
        """Keep the model under the name of each metric that it is best on, and say so.

        The scores of a validation behind a trained epoch are those of the epoch.
        """
        trainer, is_of_epoch = self._trainer, self._context.progress.is_trained
        improved = self._checkpoints.update_best_model(scores, trainer.metadata, trainer.model, is_of_epoch)
        for metric, score in improved.items():
            trainer.log(f"new best {metric}: {score:.4f}", level="SUCCESS")

    def finish(self) -> Path:
        """Wait until all files are written; return the path of ``checkpoint.pth``.

        Raises:
            EngineError: when the last one could not be.
        """
        self._checkpoints.join()
        if self._failure is not None:
            raise self._failure
        return self._folder / NEWEST

    @contextmanager
    def running(self) -> Iterator[None]:
        """Save while a block runs, and wait for the files at its end.

        An error of the last file is raised, unless another is on its way.
        """
        every_s = self._number if self._unit == "second" else None
        try:
            with alarm(every_s, self._time_has_come):
                yield
        except BaseException as error:
            if isinstance(error, Exception):
                self._keep(error)
            try:
                self._checkpoints.join()
            except EngineError as failure:
                if failure is not error:
                    self._trainer.log(failure, level="ERROR")
            raise
        self.finish()

    def _time_has_come(self) -> None:
        """Let the next update act; called by a thread."""
        self.due_at = 0

    def _keep(self, error: Exception) -> None:
        """Keep the step of an error, and the model, where the settings ask for it."""
        settings = self._context.settings
        if settings.debug or settings.save_on_exception:
            self.capsules.keep(error)
        if settings.save_on_exception:
            self._save_crash()

    def _save_crash(self) -> None:
        """Write ``crash.pth``, for looking into it: it may lie in the middle of an update."""
        trainer = self._trainer
        if self._context.parallel.store is not None:
            trainer.log("crash.pth is not written: it would need all processes, and one has failed", level="WARNING")
            return
        try:
            self._checkpoints.save_checkpoint(
                "crash.pth", trainer.metadata, trainer.model, trainer.optimizer, trainer.scheduler
            )
            self._checkpoints.join()
        except EngineError as failure:
            trainer.log(failure, level="ERROR")
