"""Take a batch apart into its single cases."""

from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from enum import Enum
from numbers import Number
from pathlib import PurePath
from typing import Any, NoReturn

import numpy as np
import torch
from torch.nn.utils.rnn import PackedSequence, unpack_sequence

from vision3d_engine.core.errors import DataError
from vision3d_engine.core.tree import describe, entries, rebuilt, step
from vision3d_engine.data.packing import (
    PACKING_KEYS,
    Lengths,
    Packing,
    Scope,
    is_array,
    is_whole_number,
    joined_in,
    packings_in,
    read_packing,
)

_SAY = (
    "Override split_batch_dict and say which: split_batch(data_dict, output_dict, stacked=[names of entries with one "
    "row a case]), and all others have one row a point; of several clouds, the one under the same key is taken"
)
_FIX = (
    "Give it one entry a case, or put 'lengths', 'offset' or 'batch' (the case of each point, such as "
    "coordinates[:, 0]) beside it, or override split_batch_dict"
)
_FIX_OFFSET = "Leave a leading 0 out (offset[1:]: where clouds end), or put 'lengths' or 'batch_size' beside it"
_IN_DOUBT = 2
# What says nothing of single cases: every case gets it.
_SHARED = (type(None), Number, str, bytes, Enum, PurePath, np.generic, np.dtype, torch.device, torch.dtype, torch.Size)


def split_batch(
    data_dict: Mapping[str, Any], output_dict: Any, *, stacked: Collection[str] | None = None
) -> tuple[list[Any], list[Any]]:
    """Split data and output of a batch into lists with one dict for each case.

    - Tensors, arrays and lists with one entry a case are taken apart along it: ``(B, ...)`` becomes ``(...)``.
    - Packed point clouds ``(sum, ...)`` become ``(points, ...)``. They are cut by ``lengths`` (points of each cloud),
      ``offset`` (where each cloud ends) or ``batch`` (the cloud of each point) in the same dict, in one around it, or
      for outputs anywhere in ``data_dict``. With a list of them for several levels of detail, lists of packed tensors
      are cut level by level; so is a list of dicts that have their own.
    - ``lengths`` of k B clouds beside a ``batch_size`` B belong to stacked batches: case i has clouds i, i + B, ...
    - Batches of PyG are taken apart by ``to_data_list``, packed sequences by torch, other objects by ``unbind``.
    - Dicts, named tuples, dataclasses and namespaces are taken apart entry by entry, at any depth.
    - Numbers, text, None and tensors without dimensions belong to the whole batch and are shared.

    Numbers that point to other points (neighbours) are cut like all others, and not counted anew.

    The number of cases B comes from ``batch_size``, else from the first ``lengths``, ``offset`` or ``batch``, else from
    the first tensor, array or batch object, else from the first list.

    A tensor may have as many rows as there are cases and as there are points, if clouds are tiny. What `collate_packed`
    joined is then cut as it was joined; of other tensors ``stacked`` tells what they are.

    Args:
        data_dict: the batch.
        output_dict: what the model returned for it.
        stacked: names of entries with one row a case. If given, also if empty, all others that may have one row a case
            or one a point have one a point.

    Raises:
        DataError: naming the path of a value that has another leading size, can be read in two ways, or is unknown.
    """
    splitter = _Splitter(_count_cases(data_dict), joined_in(data_dict, "data_dict"), stacked)
    anywhere = Scope([splitter.packings(data_dict)])
    cases = splitter.split(data_dict, Scope([]), "data_dict")
    return list(cases), list(splitter.split(output_dict, anywhere, "output_dict"))


def _fields(value: Any) -> dict[Any, Any] | None:
    """Return what a dict, named tuple, dataclass or namespace holds by name; None for anything else."""
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return dict(zip(value._fields, value, strict=True))  # pyright: ignore[reportAttributeAccessIssue]
    has_names = not isinstance(value, list | tuple | deque) or hasattr(type(value), "n_sequence_fields")
    return entries(value) if has_names else None


def _step(value: Any, key: Any) -> str:
    return f".{key}" if hasattr(value, "_fields") else step(value, key)


def _cases_of(value: Any) -> list[Any] | None:
    """Return the cases of an object that knows them; None for anything else."""
    if isinstance(value, PackedSequence):
        return unpack_sequence(value)
    if hasattr(type(value), "to_data_list"):
        return value.to_data_list()
    has_cases = hasattr(type(value), "unbind") and getattr(value, "ndim", 1) > 0
    return list(value.unbind(0)) if has_cases and not is_array(value) else None


def _count_cases(data_dict: Any) -> int:
    """Return the number of cases; what says it most clearly is believed."""
    found = min(_sizes(data_dict), key=lambda size: size[0], default=None)
    if found is not None and found[1] is None:
        message = (
            "cannot tell the batch size: data_dict has it in 'offset' alone, which begins with 0: the first cloud is "
        )
        raise DataError(f"{message}empty, or it says where clouds begin. {_FIX_OFFSET}")
    if found is None or found[1] is None:
        message = "cannot tell the batch size: data_dict holds no tensor, array, 'lengths', 'offset', 'batch' or "
        raise DataError(f"{message}'batch_size'. {_FIX}")
    return found[1]


def _sizes(value: Any) -> Iterator[tuple[int, int | None]]:
    """Yield numbers of cases that a nest speaks of, each after a rank; 0 is the clearest. None for one in doubt."""
    if is_array(value):
        yield 3, len(value)
    elif (cases := _cases_of(value)) is not None:
        yield 3, len(cases)
    elif (fields := _fields(value)) is not None:
        yield from _sizes_of_record(fields)
    elif isinstance(value, list | tuple | deque):
        yield from ((rank, size) for part in value for rank, size in _sizes(part) if rank <= _IN_DOUBT)
        yield 4, len(value)


def _sizes_of_record(fields: Mapping[Any, Any]) -> Iterator[tuple[int, int | None]]:
    if is_whole_number(fields.get("batch_size")):
        yield 0, int(fields["batch_size"])
    for key in PACKING_KEYS:
        if packings := packings_in(read_packing(key, fields.get(key)) or {}):
            lengths = packings[0].lengths
            is_doubtful = key == "offset" and lengths[:1] == [0] and any(lengths)
            is_doubtful = is_doubtful and Scope(packings).packs(list(fields.values()))
            yield (_IN_DOUBT, None) if is_doubtful else (1, len(lengths))
    for part in fields.values():
        yield from _sizes(part)


class _Splitter:
    """Splits values into a known number of cases.

    Args:
        size: number of cases.
        joined: points of each case in what was collated by the engine, None for one row a case, by path.
        stacked: see `split_batch`.
    """

    def __init__(self, size: int, joined: Mapping[str, Sequence[int] | None], stacked: Collection[str] | None) -> None:
        self._size = size
        self._joined = joined
        self._stacked = stacked

    def packings(self, value: Any) -> Any:
        """Return the packings that a nest speaks of, at their places in it."""
        if hasattr(type(value), "to_data_list"):
            return read_packing("batch", getattr(value, "batch", None), self._size) or {}
        if isinstance(value, list | tuple | deque) and not hasattr(value, "_fields"):
            levels = [self.packings(part) for part in value]
            return levels if all(levels) else {}
        fields = _fields(value) or {}
        own = self._own_packings(fields)
        return own | {key: nest for key, part in fields.items() if key not in own and (nest := self.packings(part))}

    def _own_packings(self, fields: Mapping[Any, Any]) -> dict[str, Any]:
        """Return the packings of this number of cases that a dict itself speaks of."""
        read = {key: read_packing(key, fields.get(key), self._size) for key in PACKING_KEYS}
        is_stacked = is_whole_number(fields.get("batch_size"))
        return {key: nest for key, nest in read.items() if nest is not None and self._fits(nest, is_stacked)}

    def _fits(self, nest: Any, is_stacked: bool) -> bool:
        counts = {len(packing.lengths) for packing in packings_in(nest)}
        return counts == {self._size} or (is_stacked and self._size > 0 and all(n % self._size == 0 for n in counts))

    def split(self, value: Any, scope: Scope, path: str) -> Sequence[Any]:
        """Return one part a case."""
        if is_array(value):
            return self._split_array(value, scope, path)
        if (cases := _cases_of(value)) is not None:
            return cases if len(cases) == self._size else self._refuse(value, scope, path)
        if isinstance(value, (*_SHARED, torch.Tensor, np.ndarray)):
            return [value] * self._size
        if (fields := _fields(value)) is not None:
            return self._split_record(value, fields, scope, path)
        if isinstance(value, list | tuple | deque):
            return self._split_list(value, scope, path)
        return self._refuse(value, scope, path)

    def _split_record(self, value: Any, fields: Mapping[Any, Any], scope: Scope, path: str) -> list[Any]:
        own = self._own_packings(fields)
        scope = scope.within([own, *own.values()])
        packed = [part for key, part in fields.items() if key not in own]
        parts = {
            key: self._split_entry(own[key], part)
            if key in own and (key == "lengths" or Scope([own[key]]).packs(packed))
            else self.split(part, self._towards(key, scope), path + _step(value, key))
            for key, part in fields.items()
        }
        return self._cases(value, parts)

    def _towards(self, key: Any, scope: Scope) -> Scope:
        return Scope([]) if self._stacked is not None and key in self._stacked else scope.towards(key)

    def _cases(self, value: Any, parts: Mapping[Any, Sequence[Any]]) -> list[Any]:
        """Return containers like a value, one a case, that hold what each entry has become."""
        return [rebuilt(value, {key: part[case] for key, part in parts.items()}) for case in range(self._size)]

    def _split_entry(self, packing: Any, entry: Any) -> list[Any]:
        """Split the entry that speaks of a packing, which may be a nest of them."""
        if isinstance(packing, Packing):
            return [packing.entry_of(case, self._size, entry) for case in range(self._size)]
        parts = entries(entry) or {}
        plain = list(entry) if isinstance(entry, Lengths) else entry
        return self._cases(plain, {key: self._split_entry(packing[key], part) for key, part in parts.items()})

    def _split_array(self, value: Any, scope: Scope, path: str) -> Sequence[Any]:
        size, rows = self._size, len(value)
        if rows == 0:
            return [value] * size
        has_cases, packings = self._readings(rows, scope, path)
        readings = [[value[case] for case in range(size)]] if has_cases else []
        readings += [packing.cut(value, size) for packing in packings]
        if rows in {len(packing.lengths) for packing in scope.packings} - {size}:
            readings.append([value[case::size] for case in range(size)])
        if len(readings) > 1:
            message = f"cannot split {path}: it is {describe(value)}, which can be read in {len(readings)} ways: "
            raise DataError(message + _ways(rows, size, scope) + f". {_SAY}")
        return readings[0] if readings else self._refuse(value, scope, path)

    def _readings(self, rows: int, scope: Scope, path: str) -> tuple[bool, list[Packing]]:
        """Return whether an array may have one row a case, and the packings by which it may have one a point."""
        lengths = self._joined.get(path)
        if lengths is not None and sum(lengths) == rows:
            return False, [Packing("lengths", lengths)]
        if lengths is None and path in self._joined and rows == self._size:
            return True, []
        packings = scope.nearest(rows)
        return rows == self._size and not (packings and self._stacked is not None), packings

    def _split_list(self, value: Any, scope: Scope, path: str) -> Sequence[Any]:
        joined_by_level = self._joined_by_level(path)
        if self._has_levels(value, scope) if joined_by_level is None else joined_by_level:
            nearer = scope.levels(len(value)) or [[]] * len(value)
            numbered = enumerate(zip(value, nearer, strict=True))
            parts = {at: self.split(part, scope.within(nests), f"{path}[{at}]") for at, (part, nests) in numbered}
            return self._cases(value, parts)
        return list(value) if len(value) == self._size else self._refuse(value, scope, path)

    def _joined_by_level(self, path: str) -> bool | None:
        """Tell whether a list was joined level by level; None if that is not known."""
        if path in self._joined:
            return False
        return any(each.startswith(f"{path}[") for each in self._joined) or None

    def _has_levels(self, value: Any, scope: Scope) -> bool:
        """Tell whether a list has one entry for each level of detail, and not one for each case."""
        fields = [_fields(part) for part in value]
        if not fields or any(field is None and not is_array(part) for field, part in zip(fields, value, strict=True)):
            return False
        if all(field is not None and _speaks_of_packing(field) for field in fields):
            return True
        levels = [Scope(nests) for nests in scope.levels(len(value))]
        if levels and (len(value) != self._size or any(map(Scope.packs, levels, value))):
            return True
        filled = [part for part in value if not (is_array(part) and len(part) == 0)]  # a pyramid may end with none
        if scope.has_levels:
            return all(map(scope.packs, filled or value))
        return self._size > 1 and all(map(scope.packs, value))

    def _refuse(self, value: Any, scope: Scope, path: str) -> NoReturn:
        totals = dict.fromkeys(f"{each.total} points of '{each.key}'" for each in scope.packings)
        packed = f", nor {' or '.join(totals)}" if totals else ""
        message = f"cannot split {path}: it is {describe(value)}, not {self._size} cases{packed}. {_FIX}"
        raise DataError(message)


def _ways(rows: int, size: int, scope: Scope) -> str:
    """Return what the rows of a tensor may be."""
    clouds = [f"clouds of {packing.lengths} points" for packing in scope.nearest(rows)]
    return " or ".join(([f"{size} cases"] if rows == size else []) + clouds)


def _speaks_of_packing(fields: Mapping[Any, Any]) -> bool:
    return any(read_packing(key, fields.get(key)) is not None for key in PACKING_KEYS)
