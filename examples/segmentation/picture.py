"""True and predicted classes of a few rooms."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy import ndarray

_INK = "#1f2933"
_COLORS = ("#c9ced6", "#8fa3b8", "#e08a2b", "#2f6fb0", "#7b4fa3", "#2e9e6b", "#c0392b", "#d4b72e", "#4fb3bf", "#7a5230")

Room = tuple[ndarray, ndarray, ndarray]


def draw_rooms(path: Path, rooms: Sequence[Room], classes: Sequence[str], iou: Sequence[float]) -> None:
    """Draw rooms as a PNG: the truth in the upper row, what the network says in the lower.

    Args:
        path: where to.
        rooms: points ``(N, 3)``, labels ``(N,)`` and predicted labels ``(N,)`` of each.
        classes: their names.
        iou: the IoU of each class, for the legend.
    """
    figure = Figure(figsize=(4.0 * len(rooms), 6.0))
    FigureCanvasAgg(figure)
    for column, (points, labels, predicted) in enumerate(rooms):
        for row, (numbers, text) in enumerate(((labels, f"{len(points)} points: truth"), (predicted, "predicted"))):
            axes = figure.add_subplot(2, len(rooms), row * len(rooms) + column + 1, projection="3d")
            _draw(axes, points, [_color(number) for number in numbers], text)
    entries = [
        Line2D([], [], marker="o", linestyle="", color=_color(number), label=f"{name}: IoU {value:.2f}")
        for number, (name, value) in enumerate(zip(classes, iou, strict=True))
    ]
    figure.legend(handles=entries, loc="lower center", ncols=len(entries), fontsize=11, frameon=False)
    figure.subplots_adjust(left=0.0, right=1.0, top=0.97, bottom=0.04, wspace=0.0, hspace=0.02)
    figure.savefig(path, dpi=90, facecolor="white")


def _color(number: int) -> str:
    """Return the color of a class; after ten they come again."""
    return _COLORS[number % len(_COLORS)]


def _draw(axes: Any, points: ndarray, colors: Sequence[str], text: str) -> None:
    axes.scatter(*points.T, s=5, c=colors, linewidths=0, depthshade=False)
    axes.set_title(text, fontsize=12, color=_INK, y=0.95)
    axes.set(xlim=(-3.2, 3.2), ylim=(-3.2, 3.2), zlim=(0, 2.4))
    axes.set_box_aspect((6.4, 6.4, 2.4), zoom=1.1)
    axes.view_init(elev=35, azim=40)
    axes.set_axis_off()
