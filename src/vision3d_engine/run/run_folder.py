"""The folder of a run: where its files lie, who may work in it, what is tidied up before the first step."""

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.nn.parameter import is_lazy

from vision3d_engine.checkpoint.manager import NEWEST, PREVIOUS
from vision3d_engine.checkpoint.retention import is_run_file
from vision3d_engine.checkpoint.shard_folders import is_shard_folder, remove_unfinished, remove_unused
from vision3d_engine.core.errors import FolderError, FolderInUseError, shortened
from vision3d_engine.core.files import absolute_path, make_folder
from vision3d_engine.core.locks import locked_folder
from vision3d_engine.core.tree import leaves

_MAX_NAMES = 5
# Folder beside new checkpoints for those that --overwrite replaces, until the first new one is on the disk.
_OVERWRITTEN = "overwritten"
# File in the folder of the logs with what single steps have returned.
STEPS = "steps.jsonl"


def checkpoints_of(exp: Any) -> Path:
    """Return where checkpoints of a run lie, by its settings."""
    return absolute_path(exp.checkpoint_dir or exp.output_dir / "checkpoints")


def logs_of(exp: Any) -> Path:
    """Return where the logs of a run lie, by its settings."""
    return absolute_path(exp.log_dir or exp.output_dir / "logs")


class Folders:
    """The folders of a run; by default inside ``exp.output_dir``, made when missing.

    Args:
        exp: the settings ``exp.*`` in force.
        planned: those of the run itself, whose checkpoints a try-out may load.
    """

    def __init__(self, exp: Any, planned: Any) -> None:
        self.output = make_folder(exp.output_dir)
        self.checkpoints = make_folder(checkpoints_of(exp))
        self._planned = checkpoints_of(planned)
        self.logs = make_folder(logs_of(exp))
        self.steps = self.logs / STEPS
        self.debug = self.output / "debug"
        self.events = absolute_path(exp.event_dir or self.output / "events")

    def source_of(self, name: str) -> Path:
        """Return the folder in which a checkpoint is looked for: the run's own; in a try-out else what that wrote."""
        is_only_here = (self.checkpoints / name).exists() and not (self._planned / name).exists()
        return self.checkpoints if is_only_here else self._planned


class RunFolder:
    """Locks, empties and tidies the folder of a training run.

    Args:
        folders: where its files lie.
        is_main: only the main process acts, for all.
    """

    def __init__(self, folders: Folders, is_main: bool) -> None:
        self._output, self._checkpoints = folders.output, folders.checkpoints
        self._is_main = is_main

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs out while a block runs, also of a checkpoint folder that they would share with this one.

        The main process holds the folders for all.

        Raises:
            FolderInUseError: naming the process that works there.
        """
        with contextlib.ExitStack() as stack:
            for folder in dict.fromkeys((self._output, self._checkpoints)) if self._is_main else ():
                stack.enter_context(locked_folder(folder))
            yield

    def refuse_used(self) -> None:
        """Refuse to start a new run beside checkpoints of another one.

        Raises:
            FolderInUseError: naming them, and what can be done.
        """
        if self._is_main and (old := self._old_files()):
            message = (
                f"'{self._checkpoints}' holds checkpoints of an earlier run ({shortened(old, _MAX_NAMES)}). "
                "Add --resume to go on with it, --overwrite to remove them and start anew, or set exp.output_dir"
            )
            raise FolderInUseError(message)

    def put_old_aside(self, say: Callable[[str], object]) -> None:
        """Move checkpoints of an earlier run aside, which go when the first ``checkpoint.pth`` of this one is there.

        Those that an earlier call has moved stay too, unless a later ``checkpoint.pth`` has replaced them.
        """
        if not (self._is_main and (old := self._old_files())):
            return
        aside = self._checkpoints / _OVERWRITTEN
        if NEWEST in old:
            shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(exist_ok=True)
        for name in old:
            move(self._checkpoints / name, aside / name)
        say(f"--overwrite: old checkpoints stay in '{aside}' until the first '{NEWEST}' of this run is written")

    def _old_files(self) -> list[str]:
        """Return the names of checkpoints: first those that a resume looks for, the newest behind the one before it."""
        names = sorted(path.name for path in self._checkpoints.iterdir())
        return sorted(filter(_is_checkpoint, names), key=lambda name: (name != PREVIOUS, name != NEWEST))

    def tidy(self, weights: Mapping[str, Any]) -> None:
        """Remove half-written files of a process that was killed, and make sure that there is space to save.

        Nothing may be written into the folder meanwhile.

        Args:
            weights: what a file will hold of the model: one set of weights, or two with an average of them.

        Raises:
            FolderError: when the disk is too full for one file of weights.
        """
        if not self._is_main:
            return
        folder = self._checkpoints
        for path in folder.glob(".*.pth.*.tmp"):
            path.unlink()
        remove_unfinished(folder)
        remove_unused(folder, NEWEST, (NEWEST, PREVIOUS))
        needed = sum(leaf.nbytes for _, leaf in leaves(weights) if isinstance(leaf, torch.Tensor) and not is_lazy(leaf))
        free = shutil.disk_usage(folder).free
        if free < needed:
            message = (
                f"'{folder}' has {free / 1e6:,.0f} MB free, the weights alone need {needed / 1e6:,.0f} MB. "
                "Make space, or set exp.output_dir to another disk"
            )
            raise FolderError(message)


def _is_checkpoint(name: str) -> bool:
    return is_run_file(name) or is_shard_folder(name)


def move(source: Path, target: Path) -> None:
    """Rename a file or folder, replacing what has the name."""
    if target.is_dir():
        shutil.rmtree(target)
    source.replace(target)


def overwritten(checkpoints: Path) -> Path | None:
    """Return the folder with the checkpoints that ``--overwrite`` has put aside, or None when there is none."""
    aside = checkpoints / _OVERWRITTEN
    return aside if aside.is_dir() else None


def remove_overwritten(checkpoints: Path) -> None:
    """Remove the checkpoints that ``--overwrite`` has put aside, once the new run has one of its own."""
    if aside := overwritten(checkpoints):
        shutil.rmtree(aside, ignore_errors=True)
