"""The file of one sample: arrays by name in an ``.npz``, or a cloud in a ``.ply``."""

import hashlib
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vision3d_engine.core.errors import ResultError, listed
from vision3d_engine.core.files import atomic_write
from vision3d_engine.core.tree import describe

Arrays = dict[str, np.ndarray]

_UNSAFE = re.compile(r"[^\w.+=@-]+")
_LONGEST = 120


def safe_name(name: str) -> str:
    """Return a name as that of a file: letters of all scripts and digits stay, a long name ends with its digest."""
    safe = _UNSAFE.sub("_", name).lstrip(".") or "_"
    digest = hashlib.sha256(name.encode()).hexdigest()[:12]
    return safe if len(safe) <= _LONGEST else f"{safe[:_LONGEST]}-{digest}"


def to_arrays(values: Any) -> Arrays:
    """Return copies on the host of tensors, arrays, numbers and text; entries of a nested dict as ``a/b``.

    Raises:
        ResultError: for anything else, naming it.
    """
    if not isinstance(values, Mapping):
        raise ResultError(f"save_result got {describe(values)}; expected a dict, such as {{'labels': tensor}}")
    arrays: Arrays = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            arrays |= {f"{key}/{inner}": array for inner, array in to_arrays(value).items()}
        else:
            arrays[str(key)] = _array(str(key), value)
    return arrays


def _array(key: str, value: Any) -> np.ndarray:
    try:
        array = _on_host(value) if isinstance(value, torch.Tensor) else np.array(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ResultError(_NO_ARRAY.format(key, f"{describe(value)} ({error})")) from error
    if array.dtype.hasobject:
        raise ResultError(_NO_ARRAY.format(key, describe(value)))
    return array


def _on_host(tensor: torch.Tensor) -> np.ndarray:
    """Return a copy; numpy has no bfloat16, which becomes float32."""
    tensor = tensor.detach()
    return np.array(tensor.to("cpu", torch.float32 if tensor.dtype == torch.bfloat16 else tensor.dtype).numpy())


def write_npz(path: Path, arrays: Arrays) -> None:
    """Write arrays; the same arrays give the same bytes."""
    with atomic_write(path) as file, zipfile.ZipFile(file, "w") as entries:
        for name, array in arrays.items():  # numpy's own savez takes no array of the name "file"
            with entries.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)  # pyright: ignore[reportArgumentType]


def write_ply(path: Path, arrays: Arrays) -> None:
    """Write a cloud: ``points`` ``(N, 3)``, and as properties whatever else has N rows."""
    from plyfile import PlyData, PlyElement

    columns = _columns(arrays)
    vertices = np.empty(len(arrays["points"]), dtype=[(name, column.dtype.str) for name, column in columns.items()])
    for name, column in columns.items():
        vertices[name] = column
    with atomic_write(path) as file:
        PlyData([PlyElement.describe(vertices, "vertex")]).write(file)


def _columns(arrays: Arrays) -> Arrays:
    """Return the properties of the vertices by name."""
    return {name: _storable(column) for key, array in arrays.items() for name, column in _split(key, array)}


def _split(key: str, array: np.ndarray) -> list[tuple[str, np.ndarray]]:
    if array.ndim == 1:
        return [(key, array)]
    known = _KNOWN.get(key, ())
    names = known if len(known) == array.shape[1] else [f"{key}_{place}" for place in range(array.shape[1])]
    array = _as_bytes(array) if key == "colors" else array
    return [(name, array[:, place]) for place, name in enumerate(names)]


def _as_bytes(colors: np.ndarray) -> np.ndarray:
    """Return colours in 0..255, where floats are in 0..1."""
    return colors if colors.dtype.kind in "ui" else np.rint(np.clip(colors, 0, 1) * 255).astype(np.uint8)


def _storable(column: np.ndarray) -> np.ndarray:
    """Return a column in one of the types that PLY has."""
    wanted = {"b1": "u1", "f2": "f4", "i8": "i4", "u8": "u4"}.get(column.dtype.str[1:])
    return column if wanted is None else column.astype(wanted)


def check_cloud(arrays: Arrays) -> None:
    """Refuse what is no cloud, before it is handed to the thread that writes.

    Raises:
        ResultError: naming the entry.
    """
    points = arrays.get("points")
    if points is None or points.shape[1:] != (3,):
        found = listed(f"{key} {array.shape}" for key, array in arrays.items())
        raise ResultError(f"save_result(..., format='ply') needs 'points' of the shape (N, 3); got {found}")
    for key, array in arrays.items():
        if array.ndim not in {1, 2} or len(array) != len(points) or array.dtype.kind not in "biuf":
            message = f"save_result(..., format='ply'): '{key}' is {array.dtype} {array.shape}; expected numbers, one "
            raise ResultError(f"{message}row for each of the {len(points)} points. Save it beside, as npz")


def read_sample(path: Path) -> Arrays:
    """Return the arrays of a file of a sample, and of a PLY of `FilesWriter`, whose lines are ``edges`` ``(M, 2)``.

    Columns of a PLY that were one array, such as ``scores_0`` and ``scores_1``, are one again.

    Raises:
        ResultError: when it cannot be read.
    """
    try:
        if path.suffix == ".ply":
            return _read_ply(path)
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except Exception as error:  # whatever numpy, zipfile and plyfile raise for a file that is damaged
        message = f"'{path}' cannot be read: {error}. Remove it, or test again with --overwrite"
        raise ResultError(message) from error


def _read_ply(path: Path) -> Arrays:
    from plyfile import PlyData

    elements = {each.name: {name: each[name] for name in each.data.dtype.names} for each in PlyData.read(path)}
    arrays = _joined(elements["vertex"])
    if edges := elements.get("edge"):
        ends = np.stack([edges.pop("vertex1"), edges.pop("vertex2")], axis=1)
        arrays |= {"edges": ends} | {f"edge_{key}": array for key, array in _joined(edges).items()}
    return arrays


def _joined(columns: Arrays) -> Arrays:
    """Return the opposite of `_split`."""
    arrays: Arrays = {}
    for key, names in _KNOWN.items():
        if all(name in columns for name in names):
            arrays[key] = np.stack([columns.pop(name) for name in names], axis=1)
    groups: dict[str, Arrays] = {}
    for name, column in columns.items():
        key, _, place = name.rpartition("_")
        groups.setdefault(key if key and place.isdecimal() else name, {})[name] = column
    for key, group in groups.items():
        arrays |= group if len(group) == 1 else {key: np.stack(list(group.values()), axis=1)}
    return arrays


FORMATS: dict[str, Callable[[Path, Arrays], None]] = {"npz": write_npz, "ply": write_ply}
"""How files of a suffix are written."""

_KNOWN = {"points": ("x", "y", "z"), "normals": ("nx", "ny", "nz"), "colors": ("red", "green", "blue")}
_NO_ARRAY = (
    "save_result: '{}' is {}; expected a tensor, an array, numbers, text, or a dict of these. Lists of clouds of "
    "different sizes are best joined, with their lengths beside them"
)
