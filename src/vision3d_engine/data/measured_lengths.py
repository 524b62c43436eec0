"""The points of each sample of a data set that does not state them: measured once, and kept in a file."""

import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import DataLoader, Dataset

from vision3d_engine.core.errors import DataError
from vision3d_engine.core.files import absolute_path, atomic_write
from vision3d_engine.core.locks import locked_file
from vision3d_engine.core.messages import say
from vision3d_engine.core.seeding import kept_generators
from vision3d_engine.core.tree import describe
from vision3d_engine.data.collate import points_of_clouds
from vision3d_engine.data.sample_seeds import SampleIndex, load_sample
from vision3d_engine.data.workers import opened

_MEASURED_TOGETHER = 64
_SAID_EVERY_S = 30.0


class Measuring(NamedTuple):
    """How lengths are measured.

    Attributes:
        points_of: returns the points of a sample; None for those of its clouds, as `collate_packed` finds them.
        num_workers: processes that load samples.
        cache: file that keeps the lengths; None to measure anew in every process that makes a loader.
    """

    points_of: Callable[[Any], int] | None = None
    num_workers: int = 0
    cache: str | Path | None = None


def measured_lengths(dataset: Any, how: Measuring) -> np.ndarray:
    """Return the points of each sample, loaded once under fixed seeds, in their order.

    With a file they are read from it, where three samples have as many points as it says and the data set is one of
    this class and length; else they are measured again, which is said in a warning. Of several processes with one file
    one measures, and the others wait for it.

    Raises:
        DataError: for a sample without a cloud.
    """
    if how.cache is None:
        say(_NOT_KEPT)
        return _measured(dataset, how)
    path = absolute_path(how.cache)
    if (known := _read(path, dataset, how, lambda _message, _level: None)) is not None:
        return known
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked_file(path.with_name(f".{path.name}.lock")):
        if (known := _read(path, dataset, how, say)) is None:  # else another process has measured
            known = _measured(dataset, how)
            with atomic_write(path) as file:
                np.savez(file, lengths=known, kind=np.array(_kind_of(dataset)))
    return known


def _measured(dataset: Any, how: Measuring) -> np.ndarray:
    say(f"measuring the points of {len(dataset):,} samples once, with {how.num_workers} workers ...")
    started = said = time.monotonic()
    found: list[int] = []
    options: dict[str, Any] = {"batch_size": _MEASURED_TOGETHER, "num_workers": how.num_workers, "collate_fn": list}
    with kept_generators():
        for lengths in opened(DataLoader(_Lengths(dataset, how.points_of), **options)):
            found += lengths
            if time.monotonic() - said > _SAID_EVERY_S:
                said = time.monotonic()
                say(f"measured {len(found):,} of {len(dataset):,} samples")
    say(f"measured {sum(found):,} points of {len(found):,} samples in {time.monotonic() - started:.1f}s")
    return np.array(found, dtype=np.int64)


class _Lengths(Dataset):
    """The points of each sample of a data set."""

    def __init__(self, dataset: Any, points_of: Callable[[Any], int] | None) -> None:
        self._dataset, self._points_of = dataset, points_of

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> int:
        sample = load_sample(self._dataset, SampleIndex(index, index, 1, 0))
        if self._points_of is not None:
            return int(self._points_of(sample))
        if (points := points_of_clouds(sample)) is None:
            keys = sorted(map(str, sample)) if isinstance(sample, Mapping) else describe(sample)
            raise DataError(_NO_CLOUD.format(index, type(self._dataset).__name__, keys))
        return points


def _kind_of(dataset: Any) -> str:
    return f"{type(dataset).__module__}.{type(dataset).__qualname__}"


def _read(path: Path, dataset: Any, how: Measuring, tell: Callable[[str, str], None]) -> np.ndarray | None:
    """Return the lengths that a file holds; None without one, or when they are those of other data, which is told."""
    if not path.exists():
        return None
    try:
        lengths, kind = _stored(path)
    except Exception as error:  # noqa: BLE001  a torn archive may raise anything
        tell(_STALE.format(path, f"cannot be read ({type(error).__name__}: {error})"), "WARNING")
        return None
    if (differs := "; ".join(_differences(lengths, kind, dataset, how))) != "":
        tell(_STALE.format(path, differs), "WARNING")
        return None
    return lengths


def _stored(path: Path) -> tuple[np.ndarray, str]:
    """Return the lengths of a file and the kind of data set that they are of, as they were written."""
    with zipfile.ZipFile(path) as archive:  # np.load would take any file of numpy
        if (torn := archive.testzip()) is not None:
            raise zipfile.BadZipFile(f"'{torn}' is torn")
    with np.load(path, allow_pickle=False) as file:
        lengths, kind = file["lengths"], str(file["kind"])
    if lengths.ndim != 1 or lengths.dtype != np.int64 or (lengths < 0).any():
        raise ValueError(f"expected lengths of one dimension in int64, got {describe(lengths)}")
    return lengths, kind


def _differences(lengths: np.ndarray, kind: str, dataset: Any, how: Measuring) -> Iterator[str]:
    """Say what shows that lengths are those of other data; three samples are loaded."""
    if kind != _kind_of(dataset):
        yield f"is of {kind}, not of {_kind_of(dataset)}"
    elif len(lengths) != len(dataset):
        yield f"has {len(lengths)} samples, the data set {len(dataset)}"
    elif len(lengths):
        of = _Lengths(dataset, how.points_of)
        with kept_generators():
            found = {index: of[index] for index in (0, len(lengths) // 2, len(lengths) - 1)}
        for index, points in found.items():
            if points != lengths[index]:
                yield f"says {lengths[index]} points for sample {index}, which has {points}"


_NOT_KEPT = "the data set states no lengths; build_dataloader(..., lengths_cache='lengths.npz') keeps what is measured"
_STALE = "the file of lengths '{}' {}: they are measured again"
_NO_CLOUD = (
    "batch_points needs the points of each sample: sample {} of {} has no cloud (it has {}). Expected a dict with an "
    "array of two dimensions under a name that collate_packed takes as a cloud; say build_dataloader(..., "
    "points_of=lambda sample: ...), or set lengths in the data set"
)
