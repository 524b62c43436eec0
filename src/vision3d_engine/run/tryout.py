"""Trying a script out: a few steps of all that a run does, in a scratch folder (``trainer.fast_dev_run``)."""

import atexit
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vision3d_engine.checkpoint.files import available, folder_of_newest
from vision3d_engine.core.durations import parse_val_cadence
from vision3d_engine.core.errors import ConfigError, FolderError, listed
from vision3d_engine.distributed.world import World
from vision3d_engine.loop.hooks import Hook
from vision3d_engine.run.run_folder import Folders, checkpoints_of

if TYPE_CHECKING:
    from vision3d_engine.core.settings import Settings, TrainerSettings

_SCRATCH: list[Path] = []
# Of a few batches more may be left out than of many, but not all.
_ALL_BUT_ONE = 0.999
_ONE_EPOCH: dict[str, Any] = {
    "max_epoch": 1,
    "max_updates": None,
    "val_first": False,
    "save_every": "1 epoch",
    "replay_every": None,
    "save_latest_n_models": -1,
    "log_steps": 1,
    "max_time": None,
    "requeue": False,
    "overwrite": True,
}


def tried_out(planned: "Settings", world: World) -> "Settings":
    """Return the settings that are in force: those of the run, or of a try-out of it; to be called by all processes.

    Raises:
        ConfigError: with ``trainer.overfit``, which is another thing to try.
        FolderError: when no scratch folder can be made.
    """
    steps, batches = planned.trainer.fast_dev_run, planned.trainer.overfit
    if not steps:
        return planned
    if batches:
        raise ConfigError(_ONE_OF_THEM.format(batches, steps))
    folders = {"output_dir": _scratch(world), "checkpoint_dir": None, "log_dir": None, "event_dir": None}
    cut = {"num_iters_per_epoch": steps, "limit_batches": steps, **_ONE_EPOCH, "max_skipped": _ALL_BUT_ONE}
    if parse_val_cadence(planned.trainer.val_every) is not None:
        cut["val_every"] = "1 epoch"
    cut |= _loaded(planned.trainer, checkpoints_of(planned.exp))
    parts = {"exp": planned.exp.model_copy(update=folders), "trainer": planned.trainer.model_copy(update=cut)}
    return planned.model_copy(update=parts)


def _scratch(world: World) -> Path:
    """Return the folder that all trainers, testers and processes of a script share; the first to ask makes it."""
    if not _SCRATCH:
        try:
            made = tempfile.mkdtemp(prefix="fast_dev_run-") if world.is_main else None
        except OSError as error:
            made = FolderError(f"no scratch folder for fast_dev_run can be made: {error}. Set TMPDIR to a folder")
        made = world.gather(made)[0]
        if isinstance(made, FolderError):
            raise made
        _SCRATCH.append(Path(made))
        if world.is_main:
            atexit.register(partial(shutil.rmtree, _SCRATCH[0] / "checkpoints", ignore_errors=True))
    return _SCRATCH[0]


def _loaded(trainer: "TrainerSettings", checkpoints: Path) -> dict[str, Any]:
    """Return where the run itself has what the try-out shall load."""
    if trainer.checkpoint is not None:
        own = checkpoints / trainer.checkpoint
        return {"checkpoint": str(own) if own.exists() else trainer.checkpoint}
    newest = folder_of_newest(checkpoints) if trainer.resume else None
    return {"resume": newest is not None, "checkpoint": newest and str(newest)}


class TryOut(Hook):
    """Says where a try-out works, counts what it walks, loads back what it has saved, and says that all went well.

    Args:
        folders: where its files lie.
        say: takes a message and its level.
    """

    def __init__(self, folders: Folders, say: Callable[[str, str], None]) -> None:
        self._folders, self._say = folders, say
        self._walked: Counter[str] = Counter()
        say(_START.format(folders.output), "WARNING")

    def before_train(self) -> None:
        """Begin at zero, whatever was loaded; refuse what the run itself would."""
        self.owner._lengths(self.owner._context.planned)  # noqa: SLF001  the engine's own
        self.owner._run.resume_state.begin_anew()  # noqa: SLF001

    def before_train_step(self, *_: Any) -> None:
        """Count a training batch."""
        self._walked["training"] += 1

    def before_val_step(self, *_: Any) -> None:
        """Count a validation batch."""
        self._walked["validation"] += 1

    def before_test_step(self, *_: Any) -> None:
        """Count a test batch."""
        self._walked["test"] += 1

    def after_train(self) -> None:
        """Load back what was saved, as a resume does; a run that only validates saves nothing."""
        trainer, saved = self.owner, ""
        if trainer.epoch > 0:
            newest = trainer.finish_saving()
            trainer._context.world.gather(None)  # noqa: SLF001  the main process has written it
            trainer.load(str(newest))
            saved = f"; saved {listed(available(newest.parent))}, and loaded {newest.name} back"
        self._tell(saved)

    def after_test_epoch(self, *_: Any) -> None:
        """Say what was tested."""
        self._tell("")

    def _tell(self, saved: str) -> None:
        walked = listed(f"{number} {kind}" for kind, number in self._walked.items())
        self._say(_PASSED.format(walked, saved, self._folders.output), "SUCCESS")


_ONE_OF_THEM = (
    "cfg.trainer.overfit is {} and cfg.trainer.fast_dev_run is {}: the one trains on a few batches until they are "
    "learnt, the other makes a few steps of everything. Give one of them"
)
_START = (
    "fast_dev_run: a few steps of everything. All files go into the scratch folder '{}', and the run folder stays as "
    "it is; checkpoints in the scratch folder are removed when the program ends, the rest is kept"
)
_PASSED = (
    "fast_dev_run passed: {} batches{}. What was written is in '{}'; its checkpoints are removed when the program ends"
)
