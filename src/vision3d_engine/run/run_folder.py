"""The folder of a run: where its files lie, who may work in it, what is tidied up before the first step."""

import contextlib
import shutil
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from torch import nn

from vision3d_engine.checkpoint.manager import NEWEST, PREVIOUS
from vision3d_engine.checkpoint.retention import is_run_file
from vision3d_engine.checkpoint.shard_folders import is_shard_folder, remove_unfinished, remove_unused
from vision3d_engine.core.errors import FolderError, FolderInUseError, shortened
from vision3d_engine.core.files import make_folder
from vision3d_engine.core.locks import locked_folder

_MAX_NAMES = 5


class Folders:
    """The folders of a run; by default inside ``exp.output_dir``, made when missing."""

    def __init__(self, exp: Any) -> None:
        self.output = make_folder(exp.output_dir)
        self.checkpoints = make_folder(exp.checkpoint_dir or self.output / "checkpoints")
        self.logs = make_folder(exp.log_dir or self.output / "logs")
        self.events = Path(exp.event_dir or self.output / "events")


class RunFolder:
    """Claims, locks and tidies the folder of a training run.

    Args:
        folders: where its files lie.
        is_main: only the main process acts, for all.
    """

    def __init__(self, folders: Folders, is_main: bool) -> None:
        self._output, self._checkpoints = folders.output, folders.checkpoints
        self._is_main = is_main

    def locked(self) -> AbstractContextManager[Any]:
        """Keep other runs out while a block runs; the main process holds the folder for all.

        Raises:
            FolderInUseError: naming the process that works there.
        """
        return locked_folder(self._output) if self._is_main else contextlib.nullcontext()

    def claim(self, writers: Any, overwrite: bool) -> None:
        """Make the folder that of a new run: refuse, or remove, checkpoints of another one; put its numbers aside.

        Raises:
            FolderInUseError: when there are checkpoints and they shall not be overwritten.
        """
        if not self._is_main:
            return
        folder = self._checkpoints
        old = [path for path in folder.iterdir() if is_run_file(path.name) or is_shard_folder(path.name)]
        if old and not overwrite:
            names = shortened(sorted(path.name for path in old), _MAX_NAMES)
            message = (
                f"'{folder}' holds checkpoints of an earlier run ({names}). "
                "Add --resume to go on with it, --overwrite to remove them and start anew, or set exp.output_dir"
            )
            raise FolderInUseError(message)
        for path in old:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        writers.start_anew()

    def tidy(self, model: nn.Module) -> None:
        """Remove half-written files of a process that was killed, and make sure that there is space to save.

        Raises:
            FolderError: when the disk is too full for one set of weights.
        """
        if not self._is_main:
            return
        folder = self._checkpoints
        for path in folder.glob(".*.pth.*.tmp"):
            path.unlink()
        remove_unfinished(folder)
        remove_unused(folder, NEWEST, (NEWEST, PREVIOUS))
        needed = sum(tensor.nbytes for tensor in model.state_dict().values() if hasattr(tensor, "nbytes"))
        free = shutil.disk_usage(folder).free
        if free < needed:
            message = (
                f"'{folder}' has {free / 1e6:,.0f} MB free, the weights alone need {needed / 1e6:,.0f} MB. "
                "Make space, or set exp.output_dir to another disk"
            )
            raise FolderError(message)
