"""What there is to see in the arrays of a case: clouds beside each other, each with colours, some with lines."""

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np

from vision3d_engine.core.colors import BLUE, ORANGE, as_colors, label_colors, value_colors
from vision3d_engine.results.sample_files import Arrays
from vision3d_engine.writers.clouds import as_lines

MOST_PANELS = 6
_NO_CLOUDS = {"colors", "normals", "edge_colors"}


class Panel(NamedTuple):
    """A cloud to be shown.

    Attributes:
        title: what it shows.
        points: ``(N, 3)``, all finite.
        colors: ``(N, 3)`` in uint8.
        edges: ``(M, 2)``, which two points each line joins.
        edge_colors: ``(M, 3)`` in uint8.
    """

    title: str
    points: np.ndarray
    colors: np.ndarray
    edges: np.ndarray = np.zeros((0, 2), np.int64)
    edge_colors: np.ndarray = np.zeros((0, 3), np.uint8)


def panels_of(arrays: Arrays) -> list[Panel]:
    """Return what is to be seen of a case, at most six clouds.

    - ``source`` and ``target``, two clouds to be brought together: as they are (orange, blue), then with the source
      moved by each entry ``(4, 4)``, such as the estimated and the true transform; with ``correspondences`` ``(K, 2)``,
      rows of both, the lines between them: green and red by ``is_inlier`` ``(K,)``.
    - Else each entry ``(N, 3)`` is a cloud. It is shown once for each entry with a number for each of its points: whole
      numbers are classes, which have the same colour in all clouds, others are drawn by a colour map; and once with
      ``colors``. A cloud with nothing of it is coloured by its height.

    Raises:
        DataError: for correspondences or colours that are none.
    """
    found = _pair(arrays) if _is_cloud(arrays.get("source")) and _is_cloud(arrays.get("target")) else _clouds(arrays)
    return [panel for panel in map(_finite, islice(found, MOST_PANELS)) if len(panel.points)]


def _is_cloud(array: np.ndarray | None) -> bool:
    return array is not None and array.ndim == 2 and array.shape[1] == 3 and array.dtype.kind in "iuf"  # noqa: PLR2004


def _pair(arrays: Arrays) -> Iterator[Panel]:
    source, target = (arrays[name].astype(np.float64) for name in ("source", "target"))
    colors = np.repeat(np.stack([ORANGE, BLUE]), [len(source), len(target)], axis=0)
    yield Panel("source and target", np.concatenate([source, target]), colors)
    for name, array in arrays.items():
        if array.shape == (4, 4):
            moved = source @ array[:3, :3].T + array[:3, 3]
            yield Panel(name, np.concatenate([moved, target]), colors)
    if "correspondences" in arrays:
        lines = as_lines(source, target, arrays["correspondences"], arrays.get("is_inlier"))
        yield Panel("correspondences", lines.points, lines.colors, lines.edges, lines.edge_colors)


def _clouds(arrays: Arrays) -> Iterator[Panel]:
    clouds = {name: array for name, array in arrays.items() if _is_cloud(array) and name not in _NO_CLOUDS}
    painted: set[int] = set()  # numbers belong to the first cloud of as many points
    for title, points in clouds.items():
        shown = {} if len(points) in painted else dict(_paintings(arrays, len(points)))
        painted.add(len(points))
        if "edges" in arrays and title == next(iter(clouds)):
            yield _with_edges(title, points, arrays)
        elif shown:
            yield from (Panel(name, points, colors) for name, colors in shown.items())
        else:
            yield Panel(title, points, value_colors(points[:, 2]))


def _with_edges(title: str, points: np.ndarray, arrays: Arrays) -> Panel:
    edges = arrays["edges"]
    colors = as_colors(arrays.get("colors", BLUE), len(points))
    return Panel(title, points, colors, edges, as_colors(arrays.get("edge_colors", ORANGE), len(edges)))


def _paintings(arrays: Arrays, count: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the colours ``(count, 3)`` of the points by each entry that has something for each of them."""
    if arrays.get("colors", np.zeros(0)).shape == (count, 3):
        yield "colors", as_colors(arrays["colors"], count)
    for name, array in arrays.items():
        if array.shape == (count,) and array.dtype.kind in "biuf":
            yield name, value_colors(array) if array.dtype.kind == "f" else label_colors(array)


def _finite(panel: Panel) -> Panel:
    """Return a panel without points that hold NaN or infinity, and without lines to them."""
    kept = np.asarray(np.isfinite(panel.points).all(axis=1))
    drawn, rows = kept[panel.edges].all(axis=1), np.cumsum(kept) - 1
    edges, edge_colors = rows[panel.edges[drawn]], panel.edge_colors[drawn]
    return Panel(panel.title, panel.points[kept], panel.colors[kept], edges, edge_colors)


def thinned(panel: Panel, count: int) -> Panel:
    """Return a panel of at most so many points, drawn at random, always the same ones; those that lines join stay."""
    if len(panel.points) <= count:
        return panel
    drawn = np.random.default_rng(0).choice(len(panel.points), count, replace=False)
    rows = np.unique(np.concatenate([drawn, panel.edges.ravel()]))
    edges = np.searchsorted(rows, panel.edges)
    return Panel(panel.title, panel.points[rows], panel.colors[rows], edges, panel.edge_colors)
