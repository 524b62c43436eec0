"""Before and after: source (orange) and target (blue) of a few pairs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy import ndarray

_INK, _ORANGE, _BLUE = "#1f2933", "#e08a2b", "#2f6fb0"


class Pair(NamedTuple):
    """Source and target ``(N, 3)``, the source as it was moved and as it belongs, a name, and the errors in degrees."""

    source: ndarray
    target: ndarray
    moved: ndarray
    truth: ndarray
    name: str
    before_deg: float
    after_deg: float


def draw_pairs(path: Path, title: str, pairs: Sequence[Pair]) -> None:
    """Draw pairs as a PNG, a column each: as they were, as they were registered, and as they belong.

    Args:
        path: where to.
        title: what they are.
        pairs: their clouds, names and rotation errors.
    """
    figure = Figure(figsize=(3.0 * len(pairs), 9.4))
    FigureCanvasAgg(figure)
    figure.text(0.02, 0.96, f"{title}: source (orange) onto target (blue)", fontsize=14, color=_INK)
    for column, pair in enumerate(pairs):
        before, after = f"{pair.name}, before: {pair.before_deg:.0f}°", f"after: {pair.after_deg:.1f}°"
        for row, (cloud, text) in enumerate(((pair.source, before), (pair.moved, after), (pair.truth, "truth"))):
            axes = figure.add_subplot(3, len(pairs), row * len(pairs) + column + 1, projection="3d")
            _draw(axes, cloud, pair.target, text)
    figure.subplots_adjust(left=0.0, right=1.0, top=0.91, bottom=0.0, wspace=0.0, hspace=0.1)
    figure.savefig(path, dpi=90, facecolor="white")


def _draw(axes: Any, source: ndarray, target: ndarray, text: str) -> None:
    for cloud, color in ((target, _BLUE), (source, _ORANGE)):
        axes.scatter(cloud[:, 0], cloud[:, 2], -cloud[:, 1], s=13, c=color, linewidths=0)
    axes.set_title(text, fontsize=12, color=_INK, y=1.0)
    axes.set(xlim=(-0.8, 0.8), ylim=(-0.8, 0.8), zlim=(-0.8, 0.8))
    axes.set_box_aspect((1, 1, 1), zoom=1.15)
    axes.view_init(elev=18, azim=-70)
    axes.set_axis_off()
