"""Other views of a fragment, each of which gives one more vote in a test of whole scenes."""

from collections.abc import Callable, Sequence
from math import cos, radians, sin
from typing import Any

import torch

from vision3d_engine.core.errors import DataError
from vision3d_engine.core.tree import describe

Fragment = dict[str, Any]
View = Callable[[Fragment], Fragment]


def turned(degrees: float, keys: Sequence[str] = ("points",)) -> View:
    """Return what turns fragments about the z axis.

    Args:
        degrees: anticlockwise, seen from above.
        keys: entries ``(n, 3)`` that are turned, such as points and normals.
    """
    c, s = cos(radians(degrees)), sin(radians(degrees))
    return _view([[c, s, 0], [-s, c, 0], [0, 0, 1]], keys)


def flipped(axis: int, keys: Sequence[str] = ("points",)) -> View:
    """Return what flips fragments along an axis: 0 for x, 1 for y, 2 for z."""
    signs = torch.ones(3)
    signs[axis] = -1
    return _view(signs.diag().tolist(), keys)


def scaled(factor: float, keys: Sequence[str] = ("points",)) -> View:
    """Return what makes fragments larger, seen from the origin; normals stay as they are."""
    return _view((torch.eye(3, dtype=torch.float64) * factor).tolist(), keys)


def _view(matrix: list[list[float]], keys: Sequence[str]) -> View:
    """Return what multiplies rows of three by a matrix, without the products of matrices that trainer.tf32 rounds."""

    def view(fragment: Fragment) -> Fragment:
        return fragment | {key: _multiplied(_rows(fragment, key), matrix) for key in keys}

    return view


def _multiplied(rows: torch.Tensor, matrix: list[list[float]]) -> torch.Tensor:
    return (rows[:, :, None] * rows.new_tensor(matrix)).sum(dim=1)


def _rows(fragment: Fragment, key: str) -> torch.Tensor:
    rows = fragment.get(key)
    if not isinstance(rows, torch.Tensor) or rows.ndim != 2 or rows.shape[1] != 3 or not rows.is_floating_point():  # noqa: PLR2004
        message = f"cannot augment fragment[{key!r}]: expected a tensor of floats (n, 3), got {describe(rows)}"
        raise DataError(f"{message}. Name the entries to be augmented in keys=")
    return rows
