"""Take a batch apart into its single cases."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from vision3d_engine.core.errors import DataError
from vision3d_engine.core.tree import describe

_FIX = "Give it one entry a case, or override split_batch_dict"


def split_batch(data_dict: Mapping[str, Any], output_dict: Mapping[str, Any]) -> tuple[list[dict], list[dict]]:
    """Split the dicts of a batch into lists with one dict for each case.

    - Tensors, arrays and lists with one entry a case are taken apart along it: ``(B, ...)`` becomes ``(...)``.
    - Packed point clouds are cut by an entry ``lengths`` ``(B,)`` in the same dict or in one around it: ``(sum, ...)``
      becomes ``(length, ...)``. With ``lengths`` for several levels of detail (a list of ``(B,)``), a list of as many
      packed tensors is cut level by level.
    - Numbers, text, None and tensors without dimensions belong to the whole batch and are shared.

    The number of cases B comes from ``lengths``, else from ``batch_size`` in ``data_dict``, else from its first tensor
    or array.

    Raises:
        DataError: naming the key of a value with another leading size.
    """
    lengths = _find_lengths(data_dict, None)
    size = _batch_size(data_dict, lengths)
    splitter = _Splitter(size)
    data = splitter.split_dict(data_dict, lengths, "data_dict")
    output = splitter.split_dict(output_dict, lengths, "output_dict")
    return data, output


def _find_lengths(nest: Mapping[str, Any], inherited: list[list[int]] | None) -> list[list[int]] | None:
    """Return the lengths of the cases, one list a level, from this dict or from the one around it."""
    if "lengths" not in nest:
        return inherited
    found = nest["lengths"]
    levels = found if isinstance(found, list | tuple) and len(found) > 0 and _is_array(found[0]) else [found]
    return [_as_ints(level) for level in levels]


def _as_ints(lengths: Any) -> list[int]:
    return [int(length) for length in (lengths.tolist() if _is_array(lengths) else lengths)]


def _is_array(value: Any) -> bool:
    return isinstance(value, torch.Tensor | np.ndarray)


def _batch_size(data_dict: Mapping[str, Any], lengths: list[list[int]] | None) -> int:
    if lengths is not None:
        return len(lengths[0])
    if isinstance(data_dict.get("batch_size"), int):
        return data_dict["batch_size"]
    size = _first_size(data_dict)
    if size is None:
        message = f"cannot tell the batch size: data_dict holds no tensor, array, 'lengths' or 'batch_size'. {_FIX}"
        raise DataError(message)
    return size


def _first_size(nest: Any) -> int | None:
    """Return the leading size of the first tensor or array in a nest of dicts; else that of its first list."""
    if _is_array(nest) and nest.ndim > 0:
        return len(nest)
    values = list(nest.values()) if isinstance(nest, Mapping) else []
    sizes = [size for value in values if (size := _first_size(value)) is not None]
    lists = [len(value) for value in values if isinstance(value, list | tuple)]
    return next(iter([*sizes, *lists]), None)


class _Splitter:
    """Splits values into a known number of cases."""

    def __init__(self, size: int) -> None:
        self._size = size

    def split_dict(self, nest: Mapping[str, Any], lengths: list[list[int]] | None, path: str) -> list[dict]:
        """Return one dict a case."""
        lengths = _find_lengths(nest, lengths)
        cases: list[dict] = [{} for _ in range(self._size)]
        for key, value in nest.items():
            for case, part in zip(cases, self._split(value, lengths, f"{path}['{key}']"), strict=True):
                case[key] = part
        return cases

    def _split(self, value: Any, lengths: list[list[int]] | None, path: str) -> Sequence[Any]:
        if isinstance(value, Mapping):
            return self.split_dict(value, lengths, path)
        if _is_array(value) and value.ndim > 0:
            return self._split_array(value, lengths, path)
        if isinstance(value, list | tuple):
            return self._split_list(value, lengths, path)
        return [value] * self._size

    def _split_array(self, value: Any, lengths: list[list[int]] | None, path: str) -> Sequence[Any]:
        packed = next((level for level in lengths or () if sum(level) == len(value)), None)
        if packed is not None and (len(value) != self._size or value.ndim > 1):
            return _cut(value, packed)
        if len(value) != self._size:
            self._refuse(value, lengths, path)
        return [value[index] for index in range(self._size)]

    def _split_list(self, value: Sequence[Any], lengths: list[list[int]] | None, path: str) -> Sequence[Any]:
        levels = lengths or []
        is_pyramid = len(levels) == len(value) > 1 and all(map(_is_array, value))
        if is_pyramid and all(len(item) in {self._size, sum(level)} for item, level in zip(value, levels, strict=True)):
            parts = [self._split_array(item, [level], path) for item, level in zip(value, levels, strict=True)]
            return [list(case) for case in zip(*parts, strict=True)]
        if len(value) != self._size:
            self._refuse(value, lengths, path)
        return list(value)

    def _refuse(self, value: Any, lengths: list[list[int]] | None, path: str) -> None:
        packed = f", nor the sum of 'lengths' ({' or '.join(str(sum(level)) for level in lengths)})" if lengths else ""
        message = f"cannot split {path}: it is {describe(value)}, not {self._size} cases{packed}. {_FIX}"
        raise DataError(message)


def _cut(value: Any, lengths: list[int]) -> list[Any]:
    """Cut a packed tensor or array ``(sum, ...)`` into pieces ``(length, ...)``."""
    if isinstance(value, torch.Tensor):
        return list(torch.split(value, lengths))
    return np.split(value, np.cumsum(lengths)[:-1])
