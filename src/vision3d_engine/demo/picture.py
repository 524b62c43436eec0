"""A picture of a finished run: curves on the left, clouds with mistakes marked on the right."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy import ndarray

from vision3d_engine.core.errors import ConfigError

_INK, _MUTED, _BLUE, _ORANGE, _RED = "#1f2933", "#7b8794", "#2f6fb0", "#e08a2b", "#d03b2f"
_COLUMNS = 4

Cloud = tuple[ndarray, str, str]


def draw_result(path: Path, rows: Sequence[Mapping[str, Any]], clouds: Sequence[Cloud]) -> None:
    """Draw a run as a PNG.

    Args:
        path: where to.
        rows: rows of ``metrics.jsonl`` with the phases ``train_epoch`` and ``val``.
        clouds: points ``(N, 3)``, the right name and the name that the model said, up to 12 of them.

    Raises:
        ConfigError: when matplotlib is not installed.
    """
    figure = _new_figure()
    lines = figure.add_gridspec(2, 1, left=0.055, right=0.33, top=0.86, bottom=0.09, hspace=0.38)
    _draw_curves(figure.add_subplot(lines[0]), rows, "loss")
    _draw_curves(figure.add_subplot(lines[1]), rows, "accuracy")
    count = -(-len(clouds) // _COLUMNS)
    grid = figure.add_gridspec(count, _COLUMNS, left=0.36, right=0.99, top=0.86, bottom=0.02, wspace=0.02, hspace=0.12)
    for place, cloud in zip(grid, clouds, strict=False):
        _draw_cloud(figure.add_subplot(place, projection="3d"), cloud)
    _draw_title(figure, rows)
    figure.savefig(path, dpi=100, facecolor="white")


def _new_figure() -> Any:
    """Return a figure of its own, without pyplot's global state."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        message = "the picture needs matplotlib: pip install 'vision3d-engine[plots]', or run with --no-picture"
        raise ConfigError(message) from error
    figure = Figure(figsize=(14, 7.6))
    FigureCanvasAgg(figure)
    return figure


def _draw_title(figure: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    best = max(row["values"]["accuracy"] for row in rows if row["phase"] == "val")
    figure.text(0.055, 0.935, "vision3d-engine demo", fontsize=20, weight="bold", color=_INK)
    note = f"EdgeConv on ten kinds of shapes: {best:.1%} of the validation clouds are right. Mistakes are red."
    figure.text(0.36, 0.935, note, fontsize=13, color=_MUTED)


def _draw_curves(axes: Any, rows: Sequence[Mapping[str, Any]], key: str) -> None:
    """Draw a number over the epochs, of training and validation."""
    for phase, label, color in (("train_epoch", "training", _ORANGE), ("val", "validation", _BLUE)):
        points = [(row["epoch"], row["values"][key]) for row in rows if row["phase"] == phase]
        axes.plot(*zip(*points, strict=True), color=color, label=label, linewidth=2, marker="o", markersize=4)
    axes.set_title(key, loc="left", fontsize=13, color=_INK)
    axes.set_xlabel("epoch", color=_MUTED)
    axes.grid(color="#e4e7eb", linewidth=0.8)
    axes.tick_params(colors=_MUTED)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
    axes.legend(frameon=False, labelcolor=_INK)


def _draw_cloud(axes: Any, cloud: Cloud) -> None:
    """Draw one cloud, shaded by height, with its name; in red with both names when it was mistaken."""
    points, name, said = cloud
    is_right = name == said
    color = {"c": points[:, 2], "cmap": "viridis"} if is_right else {"c": _RED}
    axes.scatter(*points.T, s=9, depthshade=True, linewidths=0, **color)
    axes.set_title(name if is_right else f"{name}, said {said}", fontsize=12, color=_INK if is_right else _RED, y=0.97)
    axes.set(xlim=(-0.75, 0.75), ylim=(-0.75, 0.75), zlim=(-0.75, 0.75), box_aspect=(1, 1, 1))
    axes.view_init(elev=22, azim=-55)
    axes.set_axis_off()
