"""Join samples, dicts with clouds of any size, to one batch."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import default_collate

from vision3d_engine.core.errors import DataError
from vision3d_engine.core.tree import describe, leaves
from vision3d_engine.data.packing import PACKING_KEYS, Lengths

CLOUD_KEYS = ("points", "coord", "coords", "coordinates", "pos", "xyz")
_NUMBERS = (bool, int, float)
_Rows = tuple[int, ...]  # of each sample


def collate_packed(
    samples: Sequence[Mapping[str, Any]],
    *,
    offset: bool = False,
    batch: bool = False,
    clouds: Collection[str] = CLOUD_KEYS,
    stacked: Collection[str] = (),
) -> dict[str, Any]:
    """Join samples to a batch of packed tensors, which `split_batch` takes apart into these samples again.

    A dict, at any depth, has a cloud if one of its entries has a name in ``clouds`` and two dimensions or more. Then:

    - Its arrays with as many rows as the cloud, in every sample of the batch, hold one row a point, and so do those of
      dicts within it: ``(points, ...)`` of each sample are joined to ``(sum, ...)``.
    - ``lengths`` in the same dict, a list on the host, has the points of each cloud, and knows what was joined. On
      request, or if samples have them: ``offset``, where each cloud ends, and ``batch``, the cloud of each point.
    - If the cloud is a list of arrays, levels of detail, ``lengths`` has a list for each. Lists of arrays with as many
      rows as some level, or none, are joined level by level; an array alone counts as one row a point if it has as
      many rows as the first level. A list of dicts that have clouds is one of levels too.

    All other arrays must have one shape and are stacked, ``(...)`` to ``(B, ...)``, as numbers are, by torch's default
    collate. Lists, texts, None and other objects are kept, in a list with one entry a sample. Numpy arrays become
    tensors. Numbers that point to other points (neighbours) are joined as they are, and not counted anew.

    Args:
        samples: dicts with the same keys, types and feature sizes.
        offset: write ``offset``.
        batch: write ``batch``.
        clouds: names of entries that are clouds; in a dict with several, the first of these names.
        stacked: names of entries that have no row a point though they may have as many (a pose beside a cloud of 4
            points): arrays are stacked, lists kept.

    Raises:
        DataError: naming sample and path of what does not go together.
    """
    asked = [key for key, is_asked in zip(PACKING_KEYS, (True, offset, batch), strict=True) if is_asked]
    if not samples or not all(isinstance(sample, Mapping) for sample in samples):
        message = f"cannot collate {', '.join(map(describe, samples)) or 'no samples'}: samples must be dicts"
        raise DataError(f"{message}. Let the data set return a dict, or write your own collate_fn")
    return _Collator(asked, tuple(clouds), frozenset(stacked)).join_dicts(samples, _Around(), "")


def collate_stacked(samples: list[Any]) -> Any:
    """Join samples by torch's default collate.

    Raises:
        DataError: when they have tensors of several sizes.
    """
    try:
        return default_collate(samples)
    except RuntimeError as error:
        if "equal size" not in str(error):
            raise
        fix = "build_dataloader(..., collate_fn=collate_packed) joins clouds of any size"
        raise DataError(f"the samples of a batch have tensors of several sizes: {error}. {fix}") from error


def explaining(collate_fn: Callable[[list[Any]], Any] | None) -> Callable[[list[Any]], Any]:
    """Return what makes a batch of samples; torch's default says what joins clouds of any size."""
    return collate_stacked if collate_fn is None or collate_fn is default_collate else collate_fn


def points_of_clouds(sample: Any, clouds: Collection[str] = CLOUD_KEYS) -> int | None:
    """Return the points of a sample's cloud, of its first level; of several in dicts within it their sum; else None."""
    if not isinstance(sample, Mapping):
        return None
    for value in (sample.get(key) for key in clouds):
        cloud: Any = value[0] if isinstance(value, list | tuple) and value else value
        if _is_cloud(cloud):
            return len(cloud)
    found = [points for part in sample.values() if (points := points_of_clouds(part, clouds)) is not None]
    return sum(found) if found else None


def points_of_batch(batch: Any) -> list[int] | None:
    """Return the points of each sample of a batch of `collate_packed`, counted as by `points_of_clouds`; else None."""
    if not isinstance(batch, Mapping):
        return None
    if isinstance(lengths := batch.get("lengths"), Lengths):
        return list(lengths[0]) if lengths and isinstance(lengths[0], list) else list(lengths)
    found = [points for part in batch.values() if (points := points_of_batch(part)) is not None]
    return [sum(points) for points in zip(*found, strict=True)] if found else None


class _Around(NamedTuple):
    """The rows of the clouds around a place.

    Attributes:
        clouds: what arrays with one row a point have.
        levels: what the members of lists of levels have.
    """

    clouds: frozenset[_Rows] = frozenset()
    levels: frozenset[_Rows] = frozenset()

    def and_of(self, rows: "_Rows | list[_Rows] | None") -> "_Around":
        """Return these and those of one more cloud."""
        if isinstance(rows, list):
            return _Around(self.clouds | {rows[0]}, self.levels.union(rows))
        return self if rows is None else _Around(self.clouds | {rows}, self.levels)

    def rows_of(self, values: Sequence[Any]) -> "_Rows | None":
        """Return the rows of arrays that have one a point; None of those that have not."""
        rows = _rows_of(values) if all(map(_is_array, values)) else ()
        return rows if rows in self.clouds else None

    def in_lists(self) -> "_Around":
        """Return what holds within a list of levels; the last ones may be empty."""
        return _Around(self.levels | {tuple(0 for _ in rows) for rows in self.levels}, self.levels)


class _Collator:
    """Joins the values that samples have at one place.

    Args:
        asked: those of `PACKING_KEYS` that every cloud gets.
        clouds: names of clouds.
        stacked: names of entries without a row a point.
    """

    def __init__(self, asked: Sequence[str], clouds: Sequence[str], stacked: Collection[str]) -> None:
        self._asked = asked
        self._clouds = [key for key in clouds if key not in stacked]
        self._stacked = stacked
        self._joined: dict[str, _Rows | None] = {}  # by path; None for one row a sample

    def join_dicts(self, dicts: Sequence[Any], around: _Around, path: str) -> dict[str, Any]:
        """Join dicts with the same keys, and say where the clouds in them end."""
        _check_same(dicts, set, path, "Return the same keys for every sample")
        rows = self._rows_of_cloud(dicts, path)
        packing = {} if rows is None else self._packing(rows, dicts, path)
        around = around.and_of(rows)
        others = [key for key in dicts[0] if key not in packing]
        batch = {key: self._entry(key, [each[key] for each in dicts], around, path) for key in others} | packing
        return batch if rows is None else batch | {"lengths": Lengths(packing["lengths"], self._joined_within(path))}

    def _joined_within(self, path: str) -> dict[str, _Rows | None]:
        return {each.removeprefix(path): rows for each, rows in self._joined.items() if each.startswith(path + "[")}

    def _entry(self, key: str, values: list[Any], around: _Around, path: str) -> Any:
        return self._join(values, _Around() if key in self._stacked else around, f"{path}[{key!r}]", key)

    def _join(self, values: list[Any], around: _Around, path: str, key: str = "") -> Any:
        _check_same(values, _kind_of, path, "Return one type for every sample")
        kind = _kind_of(values[0])
        if kind is Mapping:
            return self.join_dicts(values, around, path)
        if kind is list and key not in self._stacked and self._are_levels(values, around, path):
            levels = enumerate(zip(*values, strict=True))
            return [self._join(list(level), around.in_lists(), f"{path}[{at}]") for at, level in levels]
        self._joined[path] = rows = around.rows_of(values)
        if kind in {torch.Tensor, np.ndarray}:
            return _join_arrays(values, path, is_packed=rows is not None)
        return default_collate(values) if kind in _NUMBERS else list(values)

    def _rows_of_cloud(self, dicts: Sequence[Any], path: str) -> _Rows | list[_Rows] | None:
        """Return the rows of the cloud of each sample; a list of them for levels of detail, None without a cloud."""
        for key in self._clouds:
            values = [each.get(key) for each in dicts]
            if all(map(_is_cloud, values)):
                return _rows_of(values)
            if all(isinstance(value, list | tuple) and value and all(map(_is_cloud, value)) for value in values):
                _check_same(values, len, f"{path}[{key!r}]", "Return as many levels for every sample")
                return [_rows_of(level) for level in zip(*values, strict=True)]
        return None

    def _packing(self, rows: _Rows | list[_Rows], dicts: Sequence[Any], path: str) -> dict[str, Any]:
        """Return the entries that say where clouds end; what samples say themselves must be the same."""
        keys = [key for key in PACKING_KEYS if key in self._asked or key in dicts[0]]
        for key in keys:
            for number, each in enumerate(dicts):
                own = _packing_entry(key, _of_sample(rows, number))
                if key in each and _flat(each[key]) != _flat(own):
                    message = f"cannot collate samples[{number}]{path}[{key!r}]: it is {describe(each[key])}, but "
                    message += f"under this name a batch says where its clouds end, for this sample {describe(own)}. "
                    raise DataError(message + "Leave it out, or give it another name")
        return {key: _packing_entry(key, rows) for key in keys}

    def _are_levels(self, values: list[Any], around: _Around, path: str) -> bool:
        """Tell whether the lists of all samples have one entry for each level of detail."""
        if all(value and all(self._has_cloud(part) for part in value) for value in values):
            _check_same(values, len, path, "Return as many levels for every sample, or name it in stacked=")
            return True
        is_of_arrays = all(_is_array(part) for value in values for part in value)
        if len(set(map(len, values))) != 1 or not is_of_arrays:
            return False
        rows = [_rows_of(level) for level in zip(*values, strict=True)]
        return not around.levels.isdisjoint(rows) and around.in_lists().clouds.issuperset(rows)

    def _has_cloud(self, part: Any) -> bool:
        return isinstance(part, Mapping) and self._rows_of_cloud([part], "") is not None


def _join_arrays(values: list[Any], path: str, *, is_packed: bool) -> torch.Tensor:
    """Join arrays of one row a point, stack others."""
    _check_same(values, lambda value: value.dtype, path, "Return one dtype for every sample")
    if is_packed:
        _check_same(values, lambda value: value.shape[1:], path, "Return as many features for every sample")
        return torch.cat(values) if isinstance(values[0], torch.Tensor) else torch.as_tensor(np.concatenate(values))
    fix = (
        "Only what has one row for each point of a cloud may vary: put it beside its cloud, name the cloud in clouds=, "
        "give a second cloud a dict of its own, or return it in a list"
    )
    _check_same(values, lambda value: value.shape, path, fix)
    return torch.stack(values) if isinstance(values[0], torch.Tensor) else torch.as_tensor(np.stack(values))


def _kind_of(value: Any) -> Any:
    """Return how a value is joined: as a dict, a list, an array, a number of one type, or not at all."""
    if isinstance(value, Mapping):
        return Mapping
    if isinstance(value, torch.Tensor):
        return torch.Tensor
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biufc":
        return np.ndarray
    if type(value) in _NUMBERS:
        return type(value)
    return list if isinstance(value, list | tuple) else object


def _is_array(value: Any) -> bool:
    return _kind_of(value) in {torch.Tensor, np.ndarray} and value.ndim > 0


def _is_cloud(value: Any) -> bool:
    return _is_array(value) and value.ndim > 1


def _rows_of(values: Iterable[Any]) -> _Rows:
    return tuple(len(value) for value in values)


def _of_sample(rows: _Rows | list[_Rows], number: int) -> _Rows | list[_Rows]:
    return [(level[number],) for level in rows] if isinstance(rows, list) else (rows[number],)


def _packing_entry(key: str, rows: _Rows | list[_Rows]) -> Any:
    """Return ``lengths``, ``offset`` or ``batch`` of clouds with so many rows."""
    if isinstance(rows, list):
        return [_packing_entry(key, level) for level in rows]
    if key == "lengths":
        return list(rows)
    lengths = torch.tensor(rows)
    return lengths.cumsum(0) if key == "offset" else torch.arange(len(rows)).repeat_interleave(lengths)


def _flat(nest: Any) -> list[Any]:
    """Return all numbers of a nest."""
    return [number for _, leaf in leaves(nest) for number in np.ravel(leaf).tolist()]


def _check_same(values: Sequence[Any], of: Callable[[Any], Any], path: str, fix: str) -> None:
    """Refuse values that differ from the first one in what a function returns of them."""
    for number, value in enumerate(values):
        if of(value) != of(values[0]):
            found, first = _described(value), _described(values[0])
            raise DataError(f"cannot collate samples[{number}]{path}: it is {found}, samples[0]{path} {first}. {fix}")


def _described(value: Any) -> str:
    dtype = getattr(value, "dtype", None)
    return describe(value) if dtype is None else f"{describe(value)} of {str(dtype).removeprefix('torch.')}"
