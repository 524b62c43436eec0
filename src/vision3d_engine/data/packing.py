"""Where the clouds of a batch begin and end in packed tensors: entries ``lengths``, ``offset`` and ``batch``."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from vision3d_engine.core.errors import DataError
from vision3d_engine.core.portable import add_class
from vision3d_engine.core.tree import entries, leaves, step

PACKING_KEYS = ("lengths", "offset", "batch")
_WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


class Lengths(list):
    """The entry ``lengths`` of `collate_packed`: a list that also knows how the entries of its dict were joined.

    So a tensor with as many rows as there are cases and as there are points is cut as it was joined.

    Args:
        lengths: points of each cloud, or a list of them for each level of detail.
        joined: points of each sample in an entry of the same dict or of one within, by the path from there; None where
            the entry has one row a sample.
    """

    def __init__(self, lengths: Iterable[Any] = (), joined: Mapping[str, Sequence[int] | None] | None = None) -> None:
        super().__init__(lengths)
        self.joined = dict(joined or {})


add_class(Lengths, "lengths", lambda value: [list(value), value.joined], lambda parts: Lengths(*parts))


def joined_in(nest: Any, path: str) -> dict[str, Sequence[int] | None]:
    """Return what all `Lengths` of a nest know, by the path from outside of it."""
    found: dict[str, Sequence[int] | None] = {}
    for key, part in (entries(nest) or {}).items():
        if isinstance(part, Lengths):
            found |= {path + within: rows for within, rows in part.joined.items()}
        found |= joined_in(part, path + step(nest, key))
    return found


class Packing:
    """Clouds that lie one behind the other in tensors ``(total, ...)``.

    Args:
        key: the entry that says so, one of `PACKING_KEYS`.
        lengths: points of each cloud. Case i of B has the clouds i, i + B, i + 2 B, ...
        order: positions of the points, cloud by cloud; None when they lie like that.
    """

    def __init__(self, key: str, lengths: Sequence[int], order: np.ndarray | None = None) -> None:
        self.key = key
        self.lengths = [int(length) for length in lengths]
        self.total = sum(self.lengths)
        self._order = order

    def cut(self, value: Any, size: int) -> list[Any]:
        """Cut a packed tensor or array into one piece ``(points, ...)`` for each of ``size`` cases."""
        ordered = value if self._order is None else value[self._order]
        join: Any = torch.cat if isinstance(value, torch.Tensor) else np.concatenate
        ends = np.cumsum(self.lengths)
        clouds = [ordered[end - length : end] for length, end in zip(self.lengths, ends.tolist(), strict=True)]
        return [pieces[0] if len(pieces := clouds[case::size]) == 1 else join(pieces) for case in range(size)]

    def entry_of(self, case: int, size: int, entry: Any) -> Any:
        """Return what the entry itself is for one case: its length, or what it would be in a batch of this case."""
        lengths = self.lengths[case::size]
        if self.key == "lengths":
            return entry[case] if len(lengths) == 1 else entry[case::size]
        if self.key == "offset":
            return _like(entry, np.cumsum(lengths))
        return _like(entry, np.repeat(np.arange(len(lengths)), lengths))


def read_packing(key: str, entry: Any, size: int | None = None) -> Any:
    """Return the `Packing` of an entry, or a list or dict of them where it holds some; None when it is something else.

    Args:
        key: one of `PACKING_KEYS`.
        entry: ``lengths`` (points of each cloud), ``offset`` (where each cloud ends) or ``batch`` (the cloud of each
            point), whole numbers; or a list of them, one for each level of detail; or a dict.
        size: number of cases, if known; tells of clouds without points at the end of ``batch``.
    """
    if (numbers := _whole_numbers(_plain_column(entry))) is not None:
        return _READERS[key](numbers, size)
    is_nest = isinstance(entry, list | tuple) or (isinstance(entry, Mapping) and key != "batch")
    if not is_nest or not entry:  # a dict under the name of batch holds anything
        return None
    parts = {name: read_packing(key, part, size) for name, part in (entries(entry) or {}).items()}
    if any(part is None for part in parts.values()):
        return None
    return parts if isinstance(entry, Mapping) else list(parts.values())


def packings_in(nest: Any) -> list[Packing]:
    """Return all packings of a nest of them."""
    return [packing for _, packing in leaves(nest)]


class Scope:
    """What is known of packed tensors at one place of a batch.

    Args:
        nests: packings, and dicts and lists of them; the nearest first.
    """

    def __init__(self, nests: Sequence[Any]) -> None:
        self._nests = nests
        self.packings = packings_in(list(nests))
        self._pyramids = [pyramid for nest in nests for pyramid in _pyramids_in(nest)]
        self._totals = {packing.total for packing in self.packings}

    def within(self, nests: Iterable[Any]) -> "Scope":
        """Return this scope with nearer packings."""
        return Scope([*nests, *self._nests])

    def towards(self, key: Any) -> "Scope":
        """Return the scope of an entry, for which the packings under the same key are the nearest."""
        return self.within(named[key] for nest in self._nests for named in _dicts_at(nest) if key in named)

    def levels(self, count: int) -> list[list[Any]]:
        """Return the packings of each of ``count`` levels of detail; empty without such levels."""
        return [list(level) for level in zip(*(each for each in self._pyramids if len(each) == count), strict=True)]

    @property
    def has_levels(self) -> bool:
        """Whether there are levels of detail anywhere."""
        return bool(self._pyramids)

    def nearest(self, rows: int) -> list[Packing]:
        """Return the nearest packing with as many points; several when equally near ones have other clouds."""
        for nest in self._nests:
            found = {tuple(packing.lengths): packing for packing in packings_in(nest) if packing.total == rows}
            if found:
                return list(found.values())
        return []

    def packs(self, part: Any) -> bool:
        """Tell whether a nest holds a tensor or array with as many rows as a packing has points."""
        return any(is_array(leaf) and len(leaf) in self._totals for _, leaf in leaves(part))


def is_array(value: Any) -> bool:
    """Tell whether a value has rows, all of one shape."""
    return isinstance(value, torch.Tensor | np.ndarray) and value.ndim > 0 and not getattr(value, "is_nested", False)


def _dicts_at(nest: Any) -> list[dict[Any, Any]]:
    """Return a nest, and what its packings are by name if they are in a dict; empty for a packing or a list."""
    own = [nest, *map(nest.get, PACKING_KEYS)] if isinstance(nest, dict) else []
    return [each for each in own if isinstance(each, dict)]


def _pyramids_in(nest: Any) -> Iterator[list[Any]]:
    """Yield the lists of a nest of packings: they have one entry for each level of detail."""
    if isinstance(nest, list):
        yield nest
    for part in (entries(nest) or {}).values():
        yield from _pyramids_in(part)


def _whole_numbers(entry: Any) -> np.ndarray | None:
    """Return whole numbers from 0, of a tensor, array or list; None for anything else."""
    vector: Any = entry
    if isinstance(entry, list | tuple) and entry and all(map(is_whole_number, entry)):
        vector = np.array([int(number) for number in entry])
    if isinstance(entry, torch.Tensor) and entry.dtype in _WHOLE and entry.layout is torch.strided:
        vector = entry.detach().cpu().numpy()
    is_whole = isinstance(vector, np.ndarray) and vector.ndim == 1 and vector.dtype.kind in "iu"
    return vector.astype(np.int64) if is_whole and (vector >= 0).all() else None


def _plain_column(entry: Any) -> Any:
    """Return the numbers of a column ``(N, 1)``, or of one cut out of floats (``points[:, 0]``), as a whole vector."""
    if not isinstance(entry, torch.Tensor | np.ndarray) or entry.ndim not in {1, 2} or 0 in entry.shape:
        return entry
    vector: Any = entry[:, 0] if entry.ndim == 2 and entry.shape[1] == 1 else entry  # noqa: PLR2004
    is_float = vector.dtype.is_floating_point if isinstance(vector, torch.Tensor) else vector.dtype.kind == "f"
    if not is_float or vector.ndim != 1 or not bool((vector == vector.round()).all()):
        return vector if vector.ndim == 1 else entry
    return vector.long() if isinstance(vector, torch.Tensor) else vector.astype(np.int64)


def is_whole_number(value: Any) -> bool:
    """Tell whether a value is one whole number: python's, numpy's or torch's."""
    if isinstance(value, torch.Tensor):
        return value.ndim == 0 and value.dtype in _WHOLE
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _from_lengths(lengths: np.ndarray, _size: int | None) -> Packing:
    return Packing("lengths", lengths.tolist())


def _from_offset(ends: np.ndarray, size: int | None) -> Packing | None:
    if size is not None and len(ends) == size + 1 and ends[0] == 0:
        message = (
            f"an entry 'offset' of {len(ends)} numbers for {size} cases begins with 0: it says where each cloud ends "
            "(the cumsum of lengths). Leave the leading 0 out: offset[1:]"
        )
        raise DataError(message)
    lengths = np.diff(ends, prepend=0)
    return Packing("offset", lengths.tolist()) if (lengths >= 0).all() else None


def _from_batch(clouds: np.ndarray, size: int | None) -> Packing | None:
    """Read the cloud of each point; other numbers, such as those of samples, are larger than there are points."""
    if clouds.max(initial=0) >= max(len(clouds), size or 0, 1):
        return None
    is_sorted = bool((np.diff(clouds) >= 0).all())
    lengths = np.bincount(clouds, minlength=size or 0)
    return Packing("batch", lengths.tolist(), None if is_sorted else np.argsort(clouds, kind="stable"))


_READERS: Mapping[str, Any] = {"lengths": _from_lengths, "offset": _from_offset, "batch": _from_batch}


def _like(entry: Any, numbers: np.ndarray) -> Any:
    """Return whole numbers as what an entry is."""
    if isinstance(entry, torch.Tensor):
        return torch.as_tensor(numbers, dtype=entry.dtype, device=entry.device)
    return numbers.astype(entry.dtype) if isinstance(entry, np.ndarray) else type(entry)(numbers.tolist())
