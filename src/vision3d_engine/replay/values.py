"""The numbers that a tensor of any layout and type holds, looked at without failing the step that it is of."""

import cmath
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch

from vision3d_engine.core.tree import leaves
from vision3d_engine.distributed.parallel.shards import local_part

NAN, INFINITY = "NaN", "infinity"
_CALCULATED = {torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128}

_Found = TypeVar("_Found")


def looked_at(look: Callable[[torch.Tensor], _Found], value: Any, otherwise: _Found) -> _Found:
    """Return what is found in the numbers of a tensor or an array, handed over as one plain tensor.

    Args:
        look: takes those numbers: of sparse and nested tensors the values, of types of 8 bits floats.
        value: the tensor or array.
        otherwise: what to return where there are no such numbers, or torch cannot look at them.
    """
    try:
        numbers = _plain(value)
        return otherwise if numbers is None else look(numbers)
    except Exception:  # noqa: BLE001  whatever a class of tensors lacks, the step goes on as the run's did
        return otherwise


def _plain(value: Any) -> torch.Tensor | None:
    if isinstance(value, np.ndarray) and value.dtype.kind in "fc":
        value = torch.from_numpy(value.copy())
    if not isinstance(value, torch.Tensor) or value.is_meta or not (value.is_floating_point() or value.is_complex()):
        return None
    held = _held(local_part(value.detach()))
    return held if held.dtype in _CALCULATED else held.to(torch.complex64 if held.is_complex() else torch.float32)


def _held(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.is_mkldnn:
        return tensor.to_dense()
    if tensor.layout is torch.sparse_coo:
        return tensor._values()  # noqa: SLF001  torch's documentation has no other way to those not coalesced
    return tensor.values() if tensor.is_nested or tensor.layout is not torch.strided else tensor


def memory_of(value: Any) -> torch.UntypedStorage | None:
    """Return the memory that a tensor of any layout has its numbers in; None where there is none of its own."""
    try:
        return _held(local_part(value.detach())).untyped_storage()
    except Exception:  # noqa: BLE001  as above
        return None


def all_finite(numbers: torch.Tensor) -> bool:
    """Tell whether all numbers of a plain tensor are finite; waits for the device.

    A sum is quicker than a look at each, and says so unless it is infinite itself.
    """
    return bool(numbers.sum().isfinite()) or bool(torch.isfinite(numbers).all())


def trouble_of(leaf: Any) -> str:
    """Say what a tensor, array or number holds: ``NaN``, else ``infinity``; nothing where it is finite, or not seen."""
    if isinstance(leaf, float | complex | np.floating):
        return "" if cmath.isfinite(leaf) else NAN if cmath.isnan(leaf) else INFINITY
    return looked_at(_trouble, leaf, "")


def _trouble(numbers: torch.Tensor) -> str:
    if all_finite(numbers):
        return ""
    return NAN if bool(numbers.isnan().any()) else INFINITY


def not_finite(nest: Any) -> list[str]:
    """Return the paths of the tensors, arrays and numbers in a nest that are not finite."""
    return [path for path, leaf in leaves(nest) if trouble_of(leaf)]


def rows_not_finite(value: Any, count: int) -> list[int]:
    """Return which rows of a tensor are not finite; none where it has another number of rows."""

    def look(numbers: torch.Tensor) -> list[int]:
        if numbers.shape != value.shape or len(numbers) != count:
            return []
        return (~torch.isfinite(numbers.reshape(count, -1))).any(1).nonzero().flatten().tolist()

    return looked_at(look, value, [])


def shape_of(tensor: torch.Tensor) -> str:
    """Return the shape of a tensor as text, ``3x64``; ``1`` of a single number, ``?`` where it has none."""
    try:
        return "x".join(map(str, tensor.shape)) or "1"
    except RuntimeError:  # of nested tensors
        return "?"
