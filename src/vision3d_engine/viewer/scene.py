"""Draws clouds side by side into viser's scene, all of one scale."""

import math
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from vision3d_engine.report.panels import Panel, thinned

MOST_POINTS = 300_000
_GAP = 0.15
_THICKNESS = 0.006  # of lines
_IN_ONE_ROW = 3
_ROOT = "/shown"
_DIRECTION = np.array([0, -0.93, 0.37])
_VIEW, _ASPECT = math.radians(40), 1.25  # of the camera: a small angle, so that all clouds are seen alike
_TURN = (math.cos(math.radians(-15)), 0.0, 0.0, math.sin(math.radians(-15)))  # by -30 degrees, as in reports


def laid_out(panels: Sequence[Panel]) -> list[tuple[Panel, np.ndarray]]:
    """Return clouds in one scale, the largest of extent 1, with where the middle of each is to be: in x and z.

    Up to three stand in a row, more of them in two.
    """
    boxes = [(panel.points.min(axis=0), panel.points.max(axis=0)) for panel in panels]
    extent = max((float((high - low).max()) for low, high in boxes), default=0) or 1.0
    columns, rows = _grid(len(panels))
    placed = []
    for place, (panel, (low, high)) in enumerate(zip(panels, boxes, strict=True)):
        points = ((panel.points - (low + high) / 2) / extent).astype(np.float32)
        column, row = place % columns, place // columns
        middle = np.array([column - (columns - 1) / 2, 0, (rows - 1) / 2 - row]) * (1 + _GAP)
        placed.append((panel._replace(points=points), middle))
    return placed


def _grid(count: int) -> tuple[int, int]:
    """Return columns and rows."""
    rows = 1 if count <= _IN_ONE_ROW else 2
    return -(-count // rows), rows


def _camera(count: int) -> tuple[float, ...]:
    """Return from where so many clouds are all seen, from the front and a little from above."""
    columns, rows = ((1 + _GAP) * each for each in _grid(count))
    return tuple((_DIRECTION * (max(columns / _ASPECT, rows) / (2 * math.tan(_VIEW / 2)) + 0.5)).tolist())


class Scene:
    """The clouds that are shown, in all browsers that look.

    Args:
        server: viser's server.
        point_size: size of a point, where a cloud has the size 1.
    """

    def __init__(self, server: Any, point_size: float) -> None:
        self._server, self._point_size = server, point_size
        self._clouds: list[Any] = []
        self._lock = threading.Lock()  # viser calls back in threads
        server.scene.set_up_direction("+z")
        server.initial_camera.look_at = (0.0, 0.0, 0.0)
        server.initial_camera.fov = _VIEW

    def show(self, panels: Sequence[Panel]) -> None:
        """Draw clouds in place of those that are shown."""
        placed = laid_out([thinned(panel, MOST_POINTS) for panel in panels])
        with self._lock, self._server.atomic():
            self._server.initial_camera.position = _camera(len(panels))
            self._server.scene.add_frame(_ROOT, show_axes=False).remove()  # with all that hangs on it
            self._server.scene.add_frame(_ROOT, show_axes=False)
            self._clouds = [self._draw(place, *one) for place, one in enumerate(placed)]

    def _draw(self, place: int, panel: Panel, middle: np.ndarray) -> Any:
        scene, name = self._server.scene, f"{_ROOT}/{place}"
        scene.add_frame(name, show_axes=False, wxyz=_TURN, position=tuple(middle.tolist()))
        options = {"point_size": self._point_size, "point_shape": "circle"}
        cloud = scene.add_point_cloud(f"{name}/points", panel.points, panel.colors, **options)
        if len(panel.edges):
            colors = np.repeat(panel.edge_colors[:, np.newaxis], 2, axis=1)
            scene.add_line_segments(f"{name}/lines", panel.points[panel.edges], colors, thickness=_THICKNESS)
        above = (0.0, 0.0, float(panel.points[:, 2].max()) + _GAP / 2)
        scene.add_label(f"{name}/title", panel.title, position=above, anchor="bottom-center")
        return cloud

    def set_point_size(self, point_size: float) -> None:
        """Draw all points in another size."""
        with self._lock:
            self._point_size = point_size
            for cloud in self._clouds:
                cloud.point_size = point_size
