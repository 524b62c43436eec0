"""Which checkpoint a run goes on from: the newest, the one before it, one that is named, or none."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vision3d_engine.checkpoint.files import available, folder_of_newest
from vision3d_engine.checkpoint.manager import NEWEST, PREVIOUS, CheckpointManager, metadata_of
from vision3d_engine.checkpoint.retention import is_run_file
from vision3d_engine.core.errors import CheckpointError, DamagedCheckpointError, listed
from vision3d_engine.core.files import absolute_path
from vision3d_engine.distributed.coordination.reductions import by_rank
from vision3d_engine.distributed.parallel.replica_check import checksum
from vision3d_engine.loop.context import PassContext
from vision3d_engine.run.resume_state import ResumeState
from vision3d_engine.run.run_folder import Folders, move, overwritten
from vision3d_engine.run.run_record import recorded_launch
from vision3d_engine.update.ema import NoAverage

_ONE_CHECKPOINT = (
    "the processes do not go on from one checkpoint: {}. The main process, rank 0, writes the checkpoints of all: let "
    "exp.output_dir be a folder that all machines share, or copy rank 0's checkpoint folder to the same place on the "
    "others"
)
_ONE_MODEL = (
    "the processes do not begin with the same weights: {}. Something was loaded or changed on one of them after "
    "register_model, which makes them equal: load the same file on all, or change weights before it"
)


class Resuming:
    """Finds the checkpoint that the command line asks for, and loads it.

    Args:
        trainer: what is loaded into; its own ``load`` and ``load_weights`` are called.
        context: settings, processes, counters.
        folders: where files lie.
        checkpoints: reads them.
        state: what a checkpoint holds beside model, optimizer and schedule.
        average: the moving average of the weights, or none.
    """

    def __init__(
        self,
        trainer: Any,
        context: PassContext,
        folders: Folders,
        checkpoints: CheckpointManager,
        state: ResumeState,
        average: NoAverage,
    ) -> None:
        self._trainer, self._context = trainer, context
        self._output, self._folder = folders.output, folders.checkpoints
        self._checkpoints, self._state, self._average = checkpoints, state, average
        self._is_restarted = self._has_damage = False
        self._open: tuple[str, dict[str, Any]] | None = None

    def starts_anew(self) -> bool:
        """Tell whether the run begins at zero as far as is known before anything is loaded; to be called by all."""
        self._is_restarted = self._was_restarted()
        return not (self._context.settings.resume or self._is_restarted or self._context.progress.epoch > 0)

    def _was_restarted(self) -> bool:
        """Tell whether a launcher such as ``torchrun --max-restarts`` goes on with a run that it has started itself.

        The main process looks, for all; a folder that the first attempt was refused is no run of this launch.
        """
        world = self._context.world
        if not world.restarts:
            return False
        is_ours = world.is_main and recorded_launch(self._output) == world.launch
        return world.gather(is_ours and self._has_newest())[0]

    def _has_newest(self) -> bool:
        return (self._folder / NEWEST).exists() or (self._folder / PREVIOUS).exists()

    def start(self) -> None:
        """Load what the command line asks for: everything (--resume), or the weights alone (--checkpoint).

        Raises:
            CheckpointError: also when processes find, or have loaded, different things.
        """
        self._state.asked.note()
        self._compare(self._found())
        self._load()
        progress = self._context.progress
        self._compare(f"epoch {progress.epoch}, total_steps {progress.total_steps}{self._weights()}")

    def _found(self) -> str:
        """Say what this process would go on from."""
        settings = self._context.settings
        if not (self._is_restarted or settings.resume):
            return "no resume"
        newest = f"a '{NEWEST}' or '{PREVIOUS}'" if self._has_newest() else f"no '{NEWEST}'"
        return settings.checkpoint or newest

    def _weights(self) -> str:
        """Say which weights this process has, as far as they shall be the same on all and are not spread."""
        model, world = self._trainer.model, self._context.world
        return f", weights {int(checksum(model.parameters(), world.device)):x}" if self._context.replicas.is_on else ""

    def _compare(self, answer: str) -> None:
        """Refuse to go on where the processes have different answers.

        The main process's checkpoint is the run's; where another one's folder is on a disk of its own, training would
        average two models.
        """
        answers = self._context.world.gather((answer, f"{answer} in '{self._folder}'"))
        if len({what for what, _ in answers}) > 1:
            has_loaded = self._is_restarted or self._context.settings.resume
            text = _ONE_CHECKPOINT if has_loaded else _ONE_MODEL
            raise CheckpointError(text.format(by_rank([where for _, where in answers])))

    def _load(self) -> None:
        trainer, settings = self._trainer, self._context.settings
        if self._is_restarted:
            restarts = self._context.world.restarts
            trainer.log(f"the launcher has started the processes again ({restarts})", level="WARNING")
        if self._is_restarted or (settings.resume and settings.checkpoint is None):
            self._resume()
        elif settings.checkpoint is not None and settings.resume:
            self._resume_from(settings.checkpoint)
        elif settings.checkpoint is not None:
            trainer.load_weights(settings.checkpoint, strict=True)

    def _resume(self) -> None:
        """Go on from the run's checkpoint.pth, or from the one before it when it is damaged.

        An empty folder starts anew, as a requeued job needs it.
        """
        if self._has_newest():
            self._load_newest(self._folder)
        elif found := [name for name in available(self._folder) if is_run_file(name)]:
            message = f"--resume found no '{NEWEST}' in '{self._folder}', only {listed(found)}. "
            raise CheckpointError(message + "Name one with --checkpoint, or move these files away to start anew")
        else:
            self._context.writers.start_anew()
            aside = overwritten(self._folder)
            old = f"; what --overwrite has put aside is in '{aside}' until the first '{NEWEST}'" if aside else ""
            self._trainer.log(f"--resume: '{self._folder}' is empty, so the run starts anew{old}", level="WARNING")

    def _resume_from(self, name: str) -> None:
        """Go on from a checkpoint that is named, or from the newest one of a run folder."""
        path = absolute_path(name)
        if not path.is_dir():
            self._trainer.load(name)
        elif path.resolve() in (self._output.resolve(), self._folder.resolve()):
            self._resume()
        elif folder := folder_of_newest(path):
            self._load_newest(folder)
        else:
            message = f"'{path}' is no run folder: neither it nor a folder 'checkpoints' in it has a '{NEWEST}'. "
            raise CheckpointError(message + "Name the folder of a run, or a checkpoint")

    def _load_newest(self, folder: Path) -> None:
        """Load the newest checkpoint of a folder that is whole."""
        newest, previous = folder / NEWEST, folder / PREVIOUS
        try:
            self._trainer.load(str(newest))
        except CheckpointError as error:
            is_missing = not newest.exists()
            if not (is_missing or isinstance(error, DamagedCheckpointError)) or not previous.exists():
                raise
            self._trainer.log(f"{error}. Going on from '{PREVIOUS}', the one before it", level="WARNING")
            self._trainer.load(str(previous))
            self._has_damage = folder == self._folder and not is_missing

    def put_damaged_aside(self) -> None:
        """Give a newest checkpoint that could not be read another name; by who holds the folder."""
        if self._has_damage and self._context.world.is_main:
            move(self._folder / NEWEST, self._folder / f"{NEWEST}.damaged")
        self._has_damage = False

    def load(self, filename: str) -> None:
        """Load a checkpoint with all parts that it holds, and go on from its moment; see `BaseTrainer.load`."""
        trainer, progress = self._trainer, self._context.progress
        path, state = self._checkpoints.read(filename)
        has_data, metadata = trainer.train_loader is not None, metadata_of(state)
        if has_data:
            self._state.check(state, str(path))
        self._context.hooks.bind()
        self._context.hooks.fire("before_load", dict(metadata))
        self._state.asked.note()
        self._state.asked.check(state, str(path))
        of_average = self._restore(str(path), state)
        known = {"is_open": False, "place": (metadata["epoch"] + 1, 0, 1), "validated": metadata["total_steps"]}
        progress.load_state_dict({**known, **metadata})
        if has_data:
            self._state.restore(state)
        saved = metadata | (state.get("progress") or {})
        self._context.counters.restore(saved.get("samples"), self._context.world.is_main)
        where = f"epoch {progress.epoch}, total_steps {progress.total_steps}"
        trainer.log(f"loaded {filename}: {where}" + (", in mid-epoch" if progress.is_open else ""))
        changed = self._state.asked.follow(state, str(path))
        for warning in filter(None, (changed, self._starts_parts_anew(state, filename), of_average)):
            trainer.log(warning, level="WARNING")

    def _starts_parts_anew(self, state: Mapping[str, Any], filename: str) -> str | None:
        """Say which parts a file of weights has left as the script has built them, and where the counters stand."""
        trainer, progress = self._trainer, self._context.progress
        parts = {"optimizer": trainer.optimizer, "scheduler": trainer.scheduler}
        missing = [name for name, part in parts.items() if part is not None and name not in state]
        if trainer.optimizer is None or not missing:
            return None
        return (
            f"'{filename}' holds no {' and no '.join(missing)}, which start anew (learning rate {trainer.get_lr():g}), "
            f"while the counters go on: next is epoch {progress.epoch + 1}, total_steps is {progress.total_steps}. "
            f"'{NEWEST}' holds all; for weights alone give --checkpoint without --resume"
        )

    def _restore(self, path: str, state: dict[str, Any]) -> str | None:
        """Load the parts, and return what there is to say of the average.

        An optimizer that does not fit may still be rebuilt by the first hook of an open epoch.
        """
        with self._average.out_of_model():
            said = self._restore_average(path, state)
            self._open = (path, state) if (state.get("progress") or {}).get("is_open") else None
            try:
                self._restore_trained(path, state)
            except CheckpointError as error:
                if self._open is None:
                    raise
                self._context.logger.debug(f"{error}. It is loaded again after before_train_epoch")
        return said

    def _restore_average(self, path: str, state: Mapping[str, Any]) -> str | None:
        """Load the weights that were validated, which are the average if there is one; it is taken from the model."""
        self._checkpoints.restore(state, path, self._trainer.model)
        return self._average.restore(state, path)

    def _restore_trained(self, path: str, state: Mapping[str, Any]) -> None:
        """Load the weights that are trained, with optimizer and schedule."""
        trainer, state = self._trainer, {**state, "model": state.get("raw_model", state["model"])}
        self._checkpoints.restore(state, path, trainer.model, trainer.optimizer, trainer.scheduler)
        self._state.trained.restore(state.get("trained") or {}, path)

    def restore_again(self) -> None:
        """Load the parts and the registered states once more, when the first hook of an open epoch has acted again."""
        if self._open is None:
            return
        (path, state), self._open = self._open, None
        self._restore_average(path, state)
        self._restore_trained(path, state)
        self._state.asked.restore_rates(state)
        self._state.restore_registered(state)
