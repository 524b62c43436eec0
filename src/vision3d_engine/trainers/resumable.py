"""A run that can be stopped anywhere and resumed: its checkpoints, its folder, and requests to stop."""

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vision3d_engine.checkpoint.files import available
from vision3d_engine.checkpoint.folders import is_shard_folder, remove_unfinished, remove_unused
from vision3d_engine.checkpoint.manager import NEWEST, PREVIOUS, CheckpointManager, metadata_of
from vision3d_engine.checkpoint.parts import load_weights
from vision3d_engine.checkpoint.retention import is_run_file
from vision3d_engine.core.durations import parse_cadence, parse_duration
from vision3d_engine.core.errors import (
    CheckpointError,
    DamagedCheckpointError,
    EngineError,
    FolderError,
    FolderInUseError,
    NonFiniteError,
    listed,
)
from vision3d_engine.data.source import Source
from vision3d_engine.distributed.parallel import choose_parallel
from vision3d_engine.loop.continuation import Continuation, has_state
from vision3d_engine.loop.engine import Engine
from vision3d_engine.loop.progress import Progress
from vision3d_engine.loop.session import Session
from vision3d_engine.loop.stopping import StopRequests, end_program, is_stop, reason_of, requeue
from vision3d_engine.metrics.moments import Moments

_SAVE = "save"
_MAX_NAMES = 5


class Resumable(Engine):
    """Base of trainers: knows what to save, when, and how to go on from it."""

    def __init__(self, session: Session, cfg: Any, moments: Sequence[str], base: type) -> None:
        super().__init__(session, cfg, moments, base)
        trainer = session.settings.trainer
        self._progress = Progress()
        self._continuation = Continuation(session, self._progress)
        self._parallel = choose_parallel(trainer, session.world)
        self._checkpoints = CheckpointManager(
            session.folders.checkpoints,
            trainer.save_latest_n_models,
            keep_best=trainer.save_best_n_models,
            keep_every=trainer.save_every_n_epochs,
            in_background=trainer.async_save,
            warn=lambda message: self.log(message, level="ERROR"),
            tolerated=(NonFiniteError,) if trainer.nonfinite == "ignore" else (),
            parallel=self._parallel,
        )
        self._agreement = session.world.agreement()
        max_time_s = parse_duration(trainer.max_time) if trainer.max_time else None
        self._requests = StopRequests(self._agreement, max_time_s)
        self._cadence = parse_cadence(trainer.save_every)
        self._saved_at = 0
        self._saved_time = time.monotonic()
        self._open_moments: Moments | None = None
        self._source: Source | None = None
        self.optimizer: Any = None
        self.scheduler: Any = None
        self.train_loader: Any = None
        self.val_loader: Any = None

    @property
    def metadata(self) -> dict[str, int]:
        """What every checkpoint says about its moment: epoch and total_steps."""
        return self._progress.metadata()

    def register_state(self, name: str, part: Any) -> Any:
        """Save and restore an object with every ``checkpoint.pth``, and return it: a curriculum, an EMA, a GradScaler.

        Args:
            name: its name in the file and in messages.
            part: anything with ``state_dict`` and ``load_state_dict``; of several processes the main one's is saved.

        Raises:
            RegistrationError: when it has no state, or the name is taken.
        """
        self._continuation.register(name, part)
        return part

    def add_hook(self, hook: Any) -> Any:
        """Add a `Hook`, or any object with methods named like moments of the run, and return it.

        A hook with ``state_dict`` and ``load_state_dict`` is saved and restored under the name of its class.
        """
        super().add_hook(hook)
        if has_state(hook):
            name = type(hook).__name__
            same = sum(key.partition("#")[0] == name for key in self._continuation.parts)
            self._continuation.register(f"{name}#{same + 1}" if same else name, hook)
        return hook

    def _train_source(self) -> Source:
        """Return the training data as the engine reads it; a loader that was exchanged during the run is noticed."""
        if self._source is None or self._source.registered is not self.train_loader:
            self._source = Source(self.train_loader, self._session.world.device)
        return self._source

    # ------------------------------------------------------------------------------------------- saving

    def save(self, filename: str, save_training_states: bool = False) -> None:
        """Save the model into the checkpoint folder, with optimizer, schedule and selection if asked for.

        The state is copied now and written by a thread (``trainer.async_save``); the file appears whole or not at all.
        Only the main process writes; with ``trainer.parallel: fsdp2`` all do, and all must call it.
        """
        self._write(filename, save_training_states)

    def finish_saving(self) -> Path:
        """Wait until all files are written; return the path of ``checkpoint.pth``, which the first save makes.

        For those who copy it. Only the main process writes, so the others do not wait.

        Raises:
            EngineError: when the last file could not be written.
        """
        self._checkpoints.join()
        return self._session.folders.checkpoints / NEWEST

    def _write(self, filename: str, with_states: bool, extra: Mapping[str, Any] | None = None) -> None:
        """Save; a full disk, or weights that are not finite, leave the old file and a warning."""
        parts = {"optimizer": self.optimizer, "scheduler": self.scheduler} if with_states else {}
        try:
            self._checkpoints.save_checkpoint(
                filename, self.metadata, self.model, save_ckpt_manager=with_states, extra=extra, **parts
            )
        except FolderError as error:
            self._failed_save = error
            self.log(f"{error}. Training goes on", level="ERROR")
        except NonFiniteError as error:
            if self._session.settings.trainer.nonfinite == "stop":
                raise
            self.log(str(error), level="ERROR")
        else:
            self._failed_save = None
            self.log(f"saved {filename}", level="DEBUG")

    _failed_save: FolderError | None = None

    def _save_newest(self) -> None:
        """Write ``checkpoint.pth`` with everything that a resume needs; to be called by all processes."""
        extra = self._continuation.state(self._train_source(), self._open_moments)
        self._write(NEWEST, with_states=True, extra=extra)
        self._saved_at = self.total_steps
        self._saved_time = time.monotonic()

    def _save_between_steps(self, is_due: bool = False) -> None:
        """Save when it is due, and stop when somebody has asked for it; called at the end of every update."""
        number, unit = self._cadence
        if unit == "second" and time.monotonic() - self._saved_time >= number and self._agreement.wish is None:
            self._agreement.ask(_SAVE)
        self._requests.check_time()
        wish = self._agreement.tick()
        is_due |= unit == "iteration" and self.total_steps // int(number) > self._saved_at // int(number)
        if wish is not None or is_due:
            self._save_newest()
        if is_stop(wish):
            self._stop(str(wish))

    @property
    def total_steps(self) -> int:
        """Training batches since the beginning of the run."""
        return self._progress.total_steps

    @total_steps.setter
    def total_steps(self, value: int) -> None:
        self._progress.total_steps = value

    def _stop_if_asked(self) -> None:
        """Stop at a moment after which nothing has to be saved; called by all processes."""
        self._requests.check_time()
        wish = self._agreement.tick()
        if is_stop(wish):
            self._stop(str(wish))

    def _stop(self, wish: str) -> None:
        """End the program once the files are written."""
        self._checkpoints.join()
        progress = self._progress
        where = f"epoch {progress.epoch}, iteration {progress.trained}, total_steps {progress.total_steps}"
        self.log(f"{reason_of(wish)}: stopped; '{NEWEST}' is saved ({where}). Go on with --resume", level="WARNING")
        is_asked = self._session.settings.trainer.requeue and self._session.world.is_main
        if is_asked and (answer := requeue(wish)):
            self.log(answer)
        end_program(wish)

    @contextmanager
    def _saving(self) -> Iterator[None]:
        """Run, and wait for the files at the end: an error of the last one is raised, unless another is on its way."""
        try:
            yield
        except BaseException as error:
            if isinstance(error, Exception) and self._session.settings.trainer.save_on_exception:
                self._save_crash()
            try:
                self._checkpoints.join()
            except EngineError as failure:
                self.log(failure, level="ERROR")
            raise
        self._checkpoints.join()
        if self._failed_save is not None:
            raise self._failed_save

    def _save_crash(self) -> None:
        """Write ``crash.pth``, for looking into it: it may lie in the middle of an update."""
        if self._parallel.store is not None:
            self.log("crash.pth is not written: it would need all processes, and one has failed", level="WARNING")
            return
        try:
            self._checkpoints.save_checkpoint("crash.pth", self.metadata, self.model, self.optimizer, self.scheduler)
            self._checkpoints.join()
        except EngineError as failure:
            self.log(failure, level="ERROR")

    # ------------------------------------------------------------------------------------------- loading

    def load(self, filename: str) -> None:
        """Load a checkpoint with all parts that it holds, and go on from its moment.

        Args:
            filename: an absolute path, one from where the command runs, or a name in the checkpoint folder.

        Raises:
            CheckpointError: when there is none, it is damaged or unsafe, or belongs to another model or other data.
        """
        path, state = self._checkpoints.read(filename)
        if self.train_loader is not None:
            self._continuation.check(state, self._train_source(), str(path))
        self._checkpoints.restore(state, str(path), self.model, self.optimizer, self.scheduler)
        metadata = metadata_of(state)
        self._progress.load_state_dict({"is_open": False, "place": (metadata["epoch"] + 1, 0), **metadata})
        if self.train_loader is not None:
            self._continuation.restore(state, self._train_source())
        self._saved_at = self.total_steps
        where = f"epoch {self._progress.epoch}, total_steps {self.total_steps}"
        self.log(f"loaded {filename}: {where}" + (", in mid-epoch" if self._progress.is_open else ""))

    def load_weights(
        self,
        path: str | Path,
        *,
        include: str | Sequence[str] = (),
        exclude: str | Sequence[str] = (),
        rename: Mapping[str, str] | None = None,
        strict: bool = False,
    ) -> None:
        """Load weights alone, from any code's file, and say what was taken; for fine-tuning.

        Args:
            path: a checkpoint of this engine, a bare state dict, ``{"state_dict": ...}``, ``{"model": ...}`` or a
                safetensors file; ``module.`` and ``_orig_mod.`` in front of names are left out.
            include: patterns (``"encoder.*"``) of names in the file to take; empty takes all.
            exclude: patterns of names in the file to leave out.
            rename: beginnings of names in the file, and what they are in the model.
            strict: raise when something is missing, unexpected or of another shape, instead of saying so.

        Raises:
            CheckpointError: when the file cannot be read, nothing of it fits, or, if strict, not all of it does.
        """
        found, metadata, report = load_weights(
            self.model,
            path,
            self._session.folders.checkpoints,
            include=include,
            exclude=exclude,
            rename=rename,
            strict=strict,
        )
        self.log(f"loaded the weights of {found}" + "".join(f", {key}: {value}" for key, value in metadata.items()))
        if report:
            self.log("not loaded: " + "; ".join(report), level="WARNING")

    def _begin(self) -> None:
        """Load what the command line asks for: everything (--resume), or the weights alone (--checkpoint)."""
        trainer = self._session.settings.trainer
        if self._is_restarted:
            self.log(f"the launcher has started the processes again ({self._session.world.restarts})", level="WARNING")
            self._resume()
        elif trainer.checkpoint is None:
            if trainer.resume:
                self._resume()
        elif trainer.resume:
            self.load(trainer.checkpoint)
        else:
            self.load_weights(trainer.checkpoint, strict=True)

    def _was_restarted(self) -> bool:
        """Tell whether a launcher such as ``torchrun --max-restarts`` goes on with a run that it has begun itself.

        The main process looks, for all; a folder that the first attempt was refused is no run of this launch.
        """
        world, folder = self._session.world, self._session.folders.checkpoints
        if not world.restarts:
            return False
        is_begun = world.is_main and self._session.recorded_launch() == world.launch
        return world.gather(is_begun and ((folder / NEWEST).exists() or (folder / PREVIOUS).exists()))[0]

    _is_restarted = False

    def _resume(self) -> None:
        """Go on from the run's checkpoint.pth, or from the one before it when it is damaged.

        An empty folder starts anew, as a requeued job needs it.
        """
        folder = self._session.folders.checkpoints.absolute()
        if (folder / NEWEST).exists() or (folder / PREVIOUS).exists():
            self._load_newest(folder)
        elif found := [name for name in available(folder) if is_run_file(name)]:
            message = f"--resume found no '{NEWEST}' in '{folder}', only {listed(found)}. "
            raise CheckpointError(message + "Name one with --checkpoint, or move these files away to start anew")
        else:
            self._session.writers.start_anew()
            self.log(f"--resume: '{folder}' is empty, so the run starts anew", level="WARNING")

    def _load_newest(self, folder: Path) -> None:
        """Load the newest checkpoint that is whole; a damaged one is put aside under another name."""
        try:
            self.load(str(folder / NEWEST))
        except CheckpointError as error:
            is_missing = not (folder / NEWEST).exists()
            if not (is_missing or isinstance(error, DamagedCheckpointError)) or not (folder / PREVIOUS).exists():
                raise
            self.log(f"{error}. Going on from '{PREVIOUS}', the one before it", level="WARNING")
            self.load(str(folder / PREVIOUS))
            self._session.world.gather(None)  # all processes have read it
            if self._session.world.is_main and not is_missing:
                (folder / NEWEST).replace(folder / f"{NEWEST}.damaged")

    # ------------------------------------------------------------------------------------------- the folder

    def _claim_folder(self) -> None:
        """Refuse a folder with checkpoints of another run, and one without space; tidy up what a crash has left.

        Raises:
            FolderInUseError: when there are checkpoints and neither --resume nor --overwrite is given.
            FolderError: when the disk is too full for one set of weights.
        """
        trainer, folder = self._session.settings.trainer, self._session.folders.checkpoints
        if not self._session.world.is_main or trainer.resume or self._is_restarted or self._progress.epoch > 0:
            return
        old = [path for path in folder.iterdir() if is_run_file(path.name) or is_shard_folder(path.name)]
        if old and not trainer.overwrite:
            names = listed(sorted(path.name for path in old)[:_MAX_NAMES])
            message = (
                f"'{folder}' holds checkpoints of an earlier run ({names}). "
                "Add --resume to go on with it, --overwrite to remove them and start anew, or set exp.output_dir"
            )
            raise FolderInUseError(message)
        for path in old:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        self._session.writers.start_anew()

    def _tidy_folder(self) -> None:
        """Remove half-written files of a process that was killed, and make sure that there is space to save."""
        if not self._session.world.is_main:
            return
        folder = self._session.folders.checkpoints
        for path in folder.glob(".*.pth.*.tmp"):
            path.unlink()
        remove_unfinished(folder)
        remove_unused(folder, NEWEST, (NEWEST, PREVIOUS))
        needed = sum(tensor.nbytes for tensor in self.model.state_dict().values() if hasattr(tensor, "nbytes"))
        free = shutil.disk_usage(folder).free
        if free < needed:
            message = (
                f"'{folder}' has {free / 1e6:,.0f} MB free, the weights alone need {needed / 1e6:,.0f} MB. "
                "Make space, or set exp.output_dir to another disk"
            )
            raise FolderError(message)
