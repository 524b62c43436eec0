"""One checkpoint file: plain data in, plain data out, never code."""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vision3d_engine.core.errors import CheckpointError, listed
from vision3d_engine.core.files import atomic_write, make_folder

_PLAIN_TYPES: tuple[Any, ...] = (bool, int, float, complex, str, bytes)
_TORCH_TYPES = (torch.Tensor, torch.Size, torch.dtype, torch.device)


def write_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state durably, replacing the file in one step.

    Raises:
        CheckpointError: for a value that would not load under ``weights_only``, named by its key path; the old file
            stays as it was.
        FolderError: when the folder cannot be made or written.
    """
    plain = plain_state(state)
    make_folder(path.parent)
    with atomic_write(path) as file:
        torch.save(plain, file)


def plain_state(value: Any, path: str = "") -> Any:
    """Return the state as what ``torch.load(weights_only=True)`` accepts: numpy scalars become numbers, and so on."""
    if value is None or isinstance(value, _TORCH_TYPES):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, Mapping):
        return {plain_state(key, path): plain_state(item, f"{path}['{key}']") for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [plain_state(item, f"{path}[{index}]") for index, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    for kind in _PLAIN_TYPES:
        if isinstance(value, kind):
            return kind(value)  # a subclass (torch.__version__) would not load
    message = (
        f"state{path} is {type(value).__module__}.{type(value).__qualname__}, which a checkpoint cannot hold: loading "
        "it would run code. Return tensors, numbers, text, lists and dicts from state_dict()"
    )
    raise CheckpointError(message)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the host, as data only (``weights_only``), with numpy scalars turned into numbers.

    Files of the 2022 engine, which hold numpy scalars, are read too.

    Raises:
        CheckpointError: when the file is damaged, would run code, or holds something other than a dict.
    """
    try:
        with torch.serialization.safe_globals(_numpy_scalar_types()):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        message = (
            f"'{path}' holds python objects whose loading would run code, so it is refused. Save plain weights "
            f"(model.state_dict()) instead. torch says: {str(error).splitlines()[0]}"
        )
        raise CheckpointError(message) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        message = f"'{path}' cannot be read: {error}. It is damaged or not a torch checkpoint; use another one"
        raise CheckpointError(message) from error
    if not isinstance(state, dict):
        message = f"'{path}' holds a {type(state).__name__}; expected a dict with the key 'model'"
        raise CheckpointError(message)
    return plain_state(state)


def _numpy_scalar_types() -> list[Any]:
    """Return what a pickled numpy scalar names: harmless constructors, under numpy's old and new module names."""
    scalar = np.float64(0).__reduce__()[0]
    dtypes = [type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u4", "u8", "?")]
    return [
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
        np.dtype,
        *dtypes,
    ]


def find_checkpoint(name: str | Path, folder: Path) -> Path:
    """Return the file that a user means: an absolute path, one from where the command runs, or a name in the folder.

    Raises:
        CheckpointError: when there is none; it lists those in the folder.
    """
    for candidate in (Path(name), folder / name):
        if candidate.is_file():
            return candidate
    message = f"no checkpoint '{name}' here or in '{folder}' (there: {listed(available(folder))})"
    raise CheckpointError(message)


def available(folder: Path) -> list[str]:
    """Return the names of the checkpoints in a folder, newest last."""
    return [path.name for path in sorted(folder.glob("*.pth"), key=lambda path: path.stat().st_mtime)]
