"""Before and after: source (orange) and target (blue) of a few pairs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy import ndarray

_INK, _ORANGE, _BLUE = "#1f2933", "#e08a2b", "#2f6fb0"


class Pair(NamedTuple):
    """Source, target and moved source ``(N, 3)``, a name, and the rotation errors before and after in degrees."""

    source: ndarray
    target: ndarray
    moved: ndarray
    name: str
    before_deg: float
    after_deg: float


def draw_pairs(path: Path, pairs: Sequence[Pair]) -> None:
    """Draw pairs as a PNG: before in the upper row, after in the lower.

    Args:
        path: where to.
        pairs: their clouds, names and errors.
    """
    figure = Figure(figsize=(3.2 * len(pairs), 6.6))
    FigureCanvasAgg(figure)
    figure.text(0.02, 0.95, "Registration: source (orange) onto target (blue)", fontsize=14, color=_INK)
    for column, pair in enumerate(pairs):
        before, after = f"{pair.name}: {pair.before_deg:.0f}° apart", f"registered: {pair.after_deg:.1f}° apart"
        for row, (cloud, text) in enumerate(((pair.source, before), (pair.moved, after))):
            axes = figure.add_subplot(2, len(pairs), row * len(pairs) + column + 1, projection="3d")
            _draw(axes, cloud, pair.target, text)
    figure.subplots_adjust(left=0.0, right=1.0, top=0.93, bottom=0.0, wspace=0.0, hspace=0.02)
    figure.savefig(path, dpi=90, facecolor="white")


def _draw(axes: Any, source: ndarray, target: ndarray, text: str) -> None:
    for cloud, color in ((target, _BLUE), (source, _ORANGE)):
        axes.scatter(cloud[:, 0], cloud[:, 2], -cloud[:, 1], s=13, c=color, linewidths=0)
    axes.set_title(text, fontsize=12, color=_INK, y=0.95)
    axes.set(xlim=(-0.8, 0.8), ylim=(-0.8, 0.8), zlim=(-0.8, 0.8), box_aspect=(1, 1, 1))
    axes.view_init(elev=18, azim=-70)
    axes.set_axis_off()
