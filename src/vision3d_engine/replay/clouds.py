"""The clouds of a batch as files, in a folder as a test leaves it, to be looked at."""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from vision3d_engine.core.errors import EngineError
from vision3d_engine.core.tree import to_cpu
from vision3d_engine.data.split import split_batch
from vision3d_engine.results.folder import ResultsFolder
from vision3d_engine.results.names import ROWS
from vision3d_engine.results.sample_files import Arrays, safe_name, to_arrays, write_npz

_KIND = "batch"
_CLOUD = (2, 3)  # dimensions and coordinates


def write_clouds(folder: Path, batch: Any, endpoints: Mapping[str, Any], names: list[str]) -> None:
    """Write what each sample of a batch holds for each of its points, one file a sample, and the table of them.

    Args:
        folder: where.
        batch: the batch.
        endpoints: by name what the step has kept of its model; what cannot be split like the batch is left out.
        names: of the samples; for another number of them their places in the batch are taken.

    Raises:
        DataError: when the batch cannot be split, saying why.
    """
    batch, endpoints = to_cpu(batch), to_cpu(endpoints)
    cases = [dict(case) if isinstance(case, Mapping) else {"batch": case} for case in split_batch(batch, {})[0]]
    for name, endpoint in endpoints.items():
        with suppress(EngineError):
            for case, part in zip(cases, split_batch(batch, endpoint)[1], strict=True):
                case[name] = part
    names = names if len(names) == len(cases) else [f"sample {place + 1} of the batch" for place in range(len(cases))]
    files = ResultsFolder(folder, "").open_kind(_KIND)
    for name, case in zip(names, cases, strict=True):
        write_npz(files / f"{safe_name(name)}.npz", _of_points(case))
    rows = [{"index": place, "name": name, "values": {}} for place, name in enumerate(names)]
    (folder / ROWS).write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def _of_points(case: Mapping[str, Any]) -> Arrays:
    """Return clouds, and the numbers of their points; of several numbers a point their norm."""
    found = _arrays(case)
    counts = {len(array) for array in found.values() if _is_cloud(array)}
    rows = {name: array for name, array in found.items() if array.ndim in {1, 2} and len(array) in counts}
    return {name: array if array.ndim == 1 or _is_cloud(array) else _norms(array) for name, array in rows.items()}


def _norms(array: np.ndarray) -> np.ndarray:
    return np.linalg.norm(array.astype(np.float32), axis=1)


def _is_cloud(array: np.ndarray) -> bool:
    return (array.ndim, array.shape[-1] if array.ndim else 0) == _CLOUD and array.dtype.kind in "iuf"


def _arrays(part: Any, name: str = "") -> Arrays:
    """Return the arrays of a nest by name; what is none is left out."""
    if isinstance(part, Mapping):
        nested = (_arrays(each, f"{name}/{key}" if name else str(key)) for key, each in part.items())
        return {key: array for arrays in nested for key, array in arrays.items()}
    with suppress(EngineError):
        return {key: array for key, array in to_arrays({name: part}).items() if array.dtype.kind in "biuf"}
    return {}
