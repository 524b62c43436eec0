"""Clouds and correspondences as a script has them, made one form for all writers. Tensors are read: the host waits."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from vision3d_engine.core.colors import BLUE, GREEN, GREY, ORANGE, RED, as_colors, label_colors, value_colors
from vision3d_engine.core.errors import DataError, listed
from vision3d_engine.core.tree import describe, host_array

_GAP = 0.2  # between two clouds side by side, as a share of the first one's width


class Clouds(NamedTuple):
    """Clouds to be written.

    Attributes:
        points: ``(N, 3)`` in float32, or float64 if they came in it, of each cloud.
        colors: ``(N, 3)`` in uint8 of each cloud, or None.
        dropped: how many points were left out, since they hold NaN or infinity.
    """

    points: list[np.ndarray]
    colors: list[np.ndarray] | None
    dropped: int


class Lines(NamedTuple):
    """Points that are joined by lines.

    Attributes:
        points: ``(N, 3)``.
        colors: ``(N, 3)`` in uint8.
        edges: ``(M, 2)``, which two points each line joins.
        edge_colors: ``(M, 3)`` in uint8.
        dropped: how many points, with their lines, were left out, since they hold NaN or infinity.
    """

    points: np.ndarray
    colors: np.ndarray
    edges: np.ndarray
    edge_colors: np.ndarray
    dropped: int


def as_clouds(points: Any, colors: Any = None, labels: Any = None, values: Any = None, palette: Any = None) -> Clouds:
    """Return clouds with their colours; points that hold NaN or infinity are left out.

    Args:
        points: ``(N, 3)``, ``(B, N, 3)``, or a list of ``(N, 3)`` of any sizes; tensors of any device, or arrays.
        colors: a colour for each point as `as_colors` takes it: in the layout of the points, or ``(3,)`` for all
            points, or of a list for all of a cloud.
        labels: whole numbers, one for each point, see `label_colors`.
        values: numbers, one for each point, see `value_colors`; all clouds share one scale.
        palette: colours of the labels.

    Raises:
        DataError: for another shape or type, or numbers of points and colours that differ.
    """
    clouds = [_as_cloud(cloud, f"points[{index}]") for index, cloud in enumerate(_separate(points))]
    sizes = [len(cloud) for cloud in clouds]
    of_points = _colors_of(sizes, {"colors": colors, "labels": labels, "values": values}, palette)
    kept = [_is_whole(cloud) for cloud in clouds]
    whole = [cloud[keep] for cloud, keep in zip(clouds, kept, strict=True)]
    shown = None
    if of_points is not None:
        parts = np.split(of_points, np.cumsum(sizes)[:-1])
        shown = [part[keep] for part, keep in zip(parts, kept, strict=True)]
    return Clouds(whole, shown, sum(sizes) - sum(map(len, whole)))


def _separate(points: Any) -> list[Any]:
    """Return the clouds of a list or of a batch, or the only one."""
    if isinstance(points, list | tuple):
        if not points:
            raise DataError("points: got an empty list, expected at least one cloud (N, 3)")
        return list(points)
    found = host_array(points)
    if found.ndim not in (2, 3) or found.shape[-1:] != (3,) or (found.ndim, len(found)) == (3, 0):
        message = (
            f"points: got {describe(points)}, expected one cloud (N, 3), several of one size (B, N, 3), or a list "
        )
        raise DataError(message + "of clouds (N, 3)")
    return [found] if found.ndim == 2 else list(found)  # noqa: PLR2004  (N, 3)


def _as_cloud(points: Any, what: str) -> np.ndarray:
    found = host_array(points)
    if found.ndim != 2 or found.shape[1] != 3 or found.dtype.kind not in "iuf":  # noqa: PLR2004  (N, 3)
        got = f"{describe(points)} in {found.dtype}"
        raise DataError(f"{what}: got {got}, expected numbers of shape (N, 3), the coordinates of one cloud")
    return found.astype(np.float64 if found.dtype.itemsize > 4 else np.float32, copy=False)  # noqa: PLR2004  bytes of float32


def _is_whole(points: np.ndarray) -> np.ndarray:
    """Return which points have finite coordinates only."""
    return np.asarray(np.isfinite(points).all(axis=1))


def _colors_of(sizes: list[int], given: Mapping[str, Any], palette: Any) -> np.ndarray | None:
    """Return the colours of the points of all clouds, or None without any."""
    given = {name: value for name, value in given.items() if value is not None}
    if len(given) > 1:
        raise DataError(f"got {listed(given)}, expected one of them: a point has one colour")
    if palette is not None and "labels" not in given:
        raise DataError("got a palette without labels. Give labels, the class of each point, too")
    painters: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "colors": lambda colors: as_colors(colors, sum(sizes)),
        "labels": lambda labels: label_colors(labels, palette),
        "values": value_colors,
    }
    for name, value in given.items():
        return painters[name](_joined(value, sizes, name, (3,) if name == "colors" else ()))
    return None


def _joined(value: Any, sizes: list[int], name: str, last: tuple[int, ...]) -> np.ndarray:
    """Return what lists, batches or a flat tensor hold for each point of all clouds, as one array."""
    is_list = isinstance(value, list | tuple) and any(np.ndim(part) for part in value)
    if not is_list:
        return _rows(host_array(value), sum(sizes), name, last)
    if len(value) != len(sizes):
        raise DataError(f"{name}: got {describe(value)}, expected one entry for each of {len(sizes)} clouds")
    named = enumerate(zip(value, sizes, strict=True))
    return np.concatenate([_rows(host_array(part), size, f"{name}[{at}]", last) for at, (part, size) in named])


def _rows(found: np.ndarray, count: int, name: str, last: tuple[int, ...]) -> np.ndarray:
    """Return an array as ``(count, *last)``; one colour serves all points."""
    if found.shape == last != ():
        return np.broadcast_to(found, (count, *last))
    if found.size != count * int(np.prod(last)) or found.shape[found.ndim - len(last) :] != last:
        expected = ", ".join(map(str, (count, *last)))
        got = f"{describe(found)} in {found.dtype}"
        raise DataError(f"{name}: got {got}, expected ({expected}): one for each of {count} points")
    return found.reshape(count, *last)


# ------------------------------------------------------------------------------------------- correspondences


def as_lines(source: Any, target: Any, correspondences: Any, is_inlier: Any = None, offset: Any = None) -> Lines:
    """Return two clouds, grey and blue, and lines between them: inliers green, outliers red, orange if that is unknown.

    Args:
        source: ``(N, 3)``.
        target: ``(M, 3)``.
        correspondences: ``(K, 2)``, whole numbers: rows of source and target that belong together.
        is_inlier: ``(K,)`` booleans, or None where that is not known.
        offset: ``(3,)``, by which the target is moved; None places it beside the source, along x.

    Raises:
        DataError: for another shape or type, or a row that a cloud does not have.
    """
    first, second = _as_cloud(source, "source_points"), _as_cloud(target, "target_points")
    pairs = _as_pairs(correspondences, (len(first), len(second)))
    moved = second + (_beside(first, second) if offset is None else _as_offset(offset, second.dtype))
    points = np.concatenate([first, moved])
    colors = np.repeat(np.stack([GREY, BLUE]), [len(first), len(second)], axis=0)
    edge_colors = _line_colors(is_inlier, len(pairs))
    kept = _is_whole(points)
    edges = np.add(pairs, (0, len(first)))
    drawn = kept[edges].all(axis=1)
    rows = np.cumsum(kept) - 1  # where each point is when others are left out
    return Lines(points[kept], colors[kept], rows[edges[drawn]], edge_colors[drawn], int((~kept).sum()))


def as_marks(is_inlier: Any, distances: Any, threshold: Any) -> Any:
    """Return which correspondences are inliers: as given, or by distances up to the threshold; None if unknown.

    Raises:
        DataError: for distances without a threshold, a threshold without distances, or both ways at once.
    """
    given = {"is_inlier": is_inlier, "distances": distances, "threshold": threshold}
    names = [name for name, value in given.items() if value is not None]
    if names not in ([], ["is_inlier"], ["distances", "threshold"]):
        raise DataError(f"got {listed(names)}, expected is_inlier, or distances with a threshold, or none of them")
    return is_inlier if distances is None else host_array(distances) <= float(threshold)


def _as_pairs(correspondences: Any, sizes: tuple[int, int]) -> np.ndarray:
    found = host_array(correspondences)
    if found.ndim != 2 or found.shape[1] != 2 or found.dtype.kind not in "iu":  # noqa: PLR2004  (K, 2)
        got = f"{describe(correspondences)} in {found.dtype}"
        message = f"correspondences: got {got}, expected whole numbers of shape (K, 2): rows of source and target"
        raise DataError(message)
    found = found.astype(np.int64)
    for side, name in enumerate(("source", "target")):
        rows, size = found[:, side], sizes[side]
        if len(rows) and not (rows.min() >= 0 and rows.max() < size):
            got = f"rows {rows.min()} to {rows.max()} of the {name}"
            raise DataError(f"correspondences: got {got}, expected 0 to {size - 1}: it has {size} points")
    return found


def _line_colors(is_inlier: Any, count: int) -> np.ndarray:
    if is_inlier is None:
        return np.repeat(ORANGE[np.newaxis], count, axis=0)
    found = host_array(is_inlier)
    if found.shape != (count,) or found.dtype.kind != "b":
        got = f"{describe(is_inlier)} in {found.dtype}"
        message = f"is_inlier: got {got}, expected booleans of shape ({count},), one for each correspondence. "
        raise DataError(message + "For distances give distances= and threshold=")
    return np.where(found[:, None], GREEN, RED)


def _as_offset(offset: Any, dtype: np.dtype) -> np.ndarray:
    found = host_array(offset)
    if found.shape != (3,) or found.dtype.kind not in "iuf" or not np.isfinite(found).all():
        raise DataError(f"offset: got {describe(offset)}, expected three finite numbers, by which the target is moved")
    return found.astype(dtype)


def _beside(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return by what to move the second cloud so that it lies beside the first, along x, its middle as high."""
    boxes = [cloud[_is_whole(cloud)] for cloud in (first, second)]
    if not all(map(len, boxes)):
        return np.zeros(3, second.dtype)
    (low, high), (other_low, other_high) = ((box.min(axis=0), box.max(axis=0)) for box in boxes)
    offset = (low + high - other_low - other_high) / 2
    offset[0] = high[0] + _GAP * (high - low).max() - other_low[0]
    return offset.astype(second.dtype)
