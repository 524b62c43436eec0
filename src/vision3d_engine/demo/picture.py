"""A picture of a finished run: curves on the left, clouds with mistakes marked on the right."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy import ndarray

from vision3d_engine.core.errors import ConfigError

_INK, _ORANGE, _BLUE, _RED = "#1f2933", "#e08a2b", "#2f6fb0", "#d03b2f"


def draw_result(path: Path, rows: Sequence[Mapping[str, Any]], clouds: Sequence[tuple[ndarray, str, str]]) -> None:
    """Draw a run as a PNG.

    Args:
        path: where to.
        rows: rows of ``metrics.jsonl`` with the phases ``train_epoch`` and ``val``.
        clouds: points ``(N, 3)``, the right name and the name that the model said, up to 12 of them.

    Raises:
        ConfigError: when matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("it needs matplotlib; pip install 'vision3d-engine[plots]'") from error
    figure = Figure(figsize=(14, 7.6))
    lines = figure.add_gridspec(2, 1, left=0.055, right=0.33, top=0.86, bottom=0.09, hspace=0.38)
    for number, key in enumerate(("loss", "accuracy")):
        _draw_curves(figure.add_subplot(lines[number]), rows, key)
    grid = figure.add_gridspec(3, 4, left=0.36, right=0.99, top=0.86, bottom=0.02, wspace=0.02, hspace=0.12)
    for number, cloud in enumerate(clouds):
        _draw_cloud(figure.add_subplot(grid[number], projection="3d"), *cloud)
    best = max(row["values"]["accuracy"] for row in rows if row["phase"] == "val")
    figure.text(0.055, 0.935, "vision3d-engine demo", fontsize=20, weight="bold", color=_INK)
    figure.text(0.36, 0.935, f"{best:.1%} of the validation clouds are right. Mistakes are red.", fontsize=13)
    figure.savefig(path, dpi=100)


def _draw_curves(axes: Any, rows: Sequence[Mapping[str, Any]], key: str) -> None:
    """Draw a number over the epochs, of training and validation."""
    for phase, label, color in (("train_epoch", "training", _ORANGE), ("val", "validation", _BLUE)):
        points = [(row["epoch"], row["values"][key]) for row in rows if row["phase"] == phase]
        axes.plot(*zip(*points, strict=True), color=color, label=label, linewidth=2, marker="o", markersize=4)
    axes.set_title(key, loc="left", fontsize=13, color=_INK)
    axes.set_xlabel("epoch")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(color="#e4e7eb")
    axes.spines[:].set_visible(False)
    axes.legend(frameon=False)


def _draw_cloud(axes: Any, points: ndarray, name: str, said: str) -> None:
    """Draw one cloud, shaded by height, with its name; in red with both names when it was mistaken."""
    is_right = name == said
    axes.scatter(*points.T, s=9, linewidths=0, **({"c": points[:, 2], "cmap": "viridis"} if is_right else {"c": _RED}))
    axes.set_title(name if is_right else f"{name}, said {said}", fontsize=12, color=_INK if is_right else _RED, y=0.97)
    axes.set(xlim=(-0.75, 0.75), ylim=(-0.75, 0.75), zlim=(-0.75, 0.75), box_aspect=(1, 1, 1))
    axes.view_init(elev=22, azim=-55)
    axes.set_axis_off()
