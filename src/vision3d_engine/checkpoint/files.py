"""One checkpoint file: plain data in, plain data out, never code."""

import pickle
import struct
import time
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Mapping, MutableMapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vision3d_engine.checkpoint.retention import NEWEST, PREVIOUS
from vision3d_engine.checkpoint.shard_folders import is_sharded_state, with_tensors
from vision3d_engine.checkpoint.stubs import kind_of
from vision3d_engine.core.errors import CheckpointError, DamagedCheckpointError, FolderError, listed
from vision3d_engine.core.files import absolute_path, atomic_write, make_folder
from vision3d_engine.core.portable import plain_array, plain_leaf
from vision3d_engine.core.tree import is_container, map_with_paths

# What python's zipfile raises on damaged archives, depending on which byte is wrong.
_DAMAGE = (zipfile.BadZipFile, OSError, EOFError, zlib.error, ValueError, RuntimeError, struct.error)


def write_checkpoint(path: Path, state: Mapping[str, Any], keep_old_as: Path | None = None) -> None:
    """Write a state durably, replacing the file in one step; the old one may stay under another name.

    Raises:
        CheckpointError: for a value that would not load under ``weights_only``, named by its key path; the old file
            stays as it was.
        FolderError: when the folder cannot be made or written, or the disk is full; the old file stays as it was.
    """
    plain = plain_state(state)
    make_folder(path.parent)
    try:
        with atomic_write(path, keep_old_as) as file:
            torch.save(plain, file)
            file.flush()
            _check_loadable(Path(file.name))
            _check_records(Path(file.name))
    except (OSError, RuntimeError) as error:
        cause = (
            error.__context__ if isinstance(error, RuntimeError) else error
        )  # torch hides a full disk behind its own
        if not isinstance(cause, OSError):
            raise
        message = f"cannot write '{path}': {cause.strerror or cause}; the file that was there before stays as it was"
        raise FolderError(message) from cause


def amend_checkpoint(path: Path, metadata: Mapping[str, Any], entries: Mapping[str, Any]) -> None:
    """Replace entries of a checkpoint of a given moment, which stays whole; one of another moment is left as it is.

    Tensors in a folder of shards stay there.

    Raises:
        FolderError: when it cannot be written; it stays as it was.
        DamagedCheckpointError: when it cannot be read.
    """
    if path.exists() and (state := load_dict(path, ())).get("metadata") == dict(metadata):
        write_checkpoint(path, {**state, **entries})


def _check_loadable(path: Path) -> None:
    """Make sure that a file that was just written will load under ``weights_only``, before it counts."""
    if strange := torch.serialization.get_unsafe_globals_in_checkpoint(path):
        message = f"the state holds {listed(strange)}, which would not load under weights_only; the old file stays"
        raise CheckpointError(message)


def plain_state(state: Any) -> Any:
    """Return the state as what ``torch.load(weights_only=True)`` accepts: numpy scalars become numbers, and so on."""
    return map_with_paths(_plain, state)


def _plain(path: str, part: Any) -> Any:
    """Make one value plain, or the keys of a dict.

    Raises:
        CheckpointError: for a value that would not load, naming its key path.
    """
    if type(part) is np.ndarray:
        return plain_array(part, path)
    if isinstance(part, Mapping):
        kind = OrderedDict if type(part) is OrderedDict else dict
        return kind((key if type(key) is str else map_with_paths(_plain, key, path), part[key]) for key in part)
    if isinstance(part, np.generic):
        part = part.item()
    return part if is_container(part) else plain_leaf(part, path)


def read_checkpoint(path: Path, store: Any = None, only: Iterable[str] = ()) -> dict[str, Any]:
    """Read a checkpoint onto the host, as data only (``weights_only``), with numpy scalars turned into numbers.

    Files of the 2022 engine, which hold numpy scalars, are read too; so are those of sharded runs, with the folders
    that they point to.

    Args:
        path: the file.
        store: the `ShardStore` of a sharded run, whose tensors are then spread over its processes, which all call this.
        only: parts to read of a sharded run's file, such as ``"model"``; of other tensors only the shape is returned.

    Raises:
        DamagedCheckpointError: when a checksum is wrong or the file cannot be read, would run code, or holds something
            other than a dict.
    """
    state = plain_state(load_dict(path, _numpy_scalar_types()))
    return with_tensors(state, path, store, only) if is_sharded_state(state) else state


def load_dict(path: Path, constructors: Iterable[Any]) -> dict[str, Any]:
    """Load a dict onto the host under ``weights_only``, once its checksums are right.

    Args:
        path: the file.
        constructors: what may be called beside torch's own; see `torch.serialization.safe_globals`.

    Raises:
        DamagedCheckpointError: as `read_checkpoint`.
    """
    _check_records(path)
    try:
        with torch.serialization.safe_globals(list(constructors)):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own message advises to run the code; the reason alone is in the error that it replaces
        reason = str(error.__context__ or error).splitlines()[0]
        message = f"'{path}' holds python objects, or is written in a way, that torch does not load as data only; to "
        message += "load it otherwise would run code, so it is refused. Save plain weights instead "
        message += f"(torch.save(model.state_dict(), path)). torch says: {reason}"
        raise DamagedCheckpointError(message) from None
    except Exception as error:  # whatever torch makes of bytes that it did not write
        message = f"'{path}' cannot be read: {error}. It is damaged or not a torch checkpoint; use another one"
        raise DamagedCheckpointError(message) from error
    if isinstance(state, dict):
        return state
    message = f"'{path}' holds {kind_of(state)}; expected a dict with the key 'model' or of weights. Save "
    raise DamagedCheckpointError(message + "model.state_dict() instead")


def _check_records(path: Path) -> None:
    """Compare every record of a checkpoint with its checksum, which ``torch.load`` does not do.

    Files in torch's format from before 1.6, which have no checksums, are left to ``torch.load``.
    """
    wrong = None
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as records:
                wrong = records.testzip()
    except _DAMAGE as error:
        wrong = str(error)
    if wrong is not None:
        message = f"'{path}' is damaged: the checksum of its record '{wrong}' is wrong; use another checkpoint"
        raise DamagedCheckpointError(message)


def _numpy_scalar_types() -> list[Any]:
    """Return what a pickled numpy scalar names: harmless constructors, under numpy's old and new module names."""
    scalar = np.float64(0).__reduce__()[0]
    dtypes = [type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u4", "u8", "?")]
    return [*((scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")), np.dtype, *dtypes]


def find_checkpoint(name: str | Path, folder: Path, failed: MutableMapping[str, BaseException] | None = None) -> Path:
    """Return the file that a user means: an absolute path, one from where the command runs, or a name in the folder.

    Of a run folder it is the newest checkpoint.

    What went wrong in the last save of a file in the folder is told once, and then taken out of ``failed``.

    Raises:
        CheckpointError: when there is none (it lists those in the folder), or its last save has failed.
        DamagedCheckpointError: when a folder has its name.
    """
    path = _meant(name, folder)
    if failed and path.name in failed and path.parent.resolve() == folder.resolve():
        error = failed.pop(path.name)
        raise CheckpointError(f"the last save of '{path}' has failed: {error}. {_older_file(path)}") from error
    if path.is_file():
        return path
    if path.is_dir():
        raise DamagedCheckpointError(f"'{path}' is a folder, no checkpoint; use another one")
    raise CheckpointError(f"no checkpoint '{name}' here or in '{folder}' (there: {listed(available(folder))})")


def _meant(name: str | Path, folder: Path) -> Path:
    here = absolute_path(name)
    if here.is_dir() and (checkpoints := folder_of_newest(here)):
        return checkpoints / NEWEST
    return here if here.is_file() else folder / name


def folder_of_newest(path: Path) -> Path | None:
    """Return where the newest checkpoints of a run folder lie, or of a checkpoint folder; None when there are none."""
    folders = (path, path / "checkpoints")
    return next((one for one in folders if (one / NEWEST).exists() or (one / PREVIOUS).exists()), None)


def _older_file(path: Path) -> str:
    """Say what can be done when the last save of a file has failed."""
    if not path.is_file():
        return "There is no older file of this name; save again"
    return f"The file there is an older one, of {written_at(path)}; load it once more to take it, or save again before"


def written_at(path: Path) -> str:
    """Return when a file was written, as people read it."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(path.stat().st_mtime))


def available(folder: Path) -> list[str]:
    """Return the names of the checkpoints in a folder, newest last."""
    return [path.name for path in sorted(folder.glob("*.pth"), key=lambda path: path.lstat().st_mtime)]
