"""Which curves a page shows together, and a chart of them as SVG."""

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from vision3d_engine.report.markup import Markup, element, joined
from vision3d_engine.report.run_data import Curves
from vision3d_engine.results.comparison import number_text

_WIDTH, _HEIGHT = 460, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 10, 36
# Seen on white and on black, and told apart by most people.
_COLORS = (
    *("#3f74d8", "#e07b28", "#2f9e5f", "#cc4b8e", "#8b63d6", "#2ba0b4"),
    *("#b58e22", "#d24343", "#6d7f94", "#79a832", "#a8623c", "#5b5bd6"),
)
_MOST_CURVES = len(_COLORS)
_TICKS = 5
_EPOCHS, _EPOCHS_NAME = "train_epoch", "train, mean of epoch"


class Curve(NamedTuple):
    """A curve: places ``(N,)`` and numbers ``(N,)``, of which NaN are gaps."""

    name: str
    x: np.ndarray
    y: np.ndarray


class Chart(NamedTuple):
    """Curves on the same axes."""

    title: str
    curves: list[Curve]


def names_of_classes(names: Iterable[str]) -> set[str]:
    """Return the numbers that are of single classes, as ``seg/IoU/floor``: in a group that holds no further one."""
    groups = {name: name.rpartition("/")[0] for name in names if not _is_rate(name)}
    outer = {parent for group in groups.values() for parent in _around(group)}
    return {name for name, group in groups.items() if "/" in group and group not in outer}


def _around(group: str) -> list[str]:
    parts = group.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]


def charts_of(curves: Curves) -> list[Chart]:
    """Return the charts: a number of all phases and validation sets on one, the classes of a metric on one.

    What is trained on comes first, then what is validated, the learning rates, and all else. Classes of which there are
    more than there are colours (12) have none.
    """
    of_classes = names_of_classes(key for _, key in curves)
    charts: dict[str, list[Curve]] = {}
    for (phase, key), (x, y) in sorted(curves.items(), key=lambda item: _rank(*item[0])):
        group, _, last = key.rpartition("/")
        title, name = last, f"{phase} {group}".strip()
        if _is_rate(key):
            title, name = "lr", key.removeprefix("lr/") if group else phase
        elif key in of_classes:
            title, name = group, f"{phase} {last}"
        charts.setdefault(title, []).append(Curve(name.replace(_EPOCHS, _EPOCHS_NAME), np.array(x), np.array(y)))
    return [Chart(title, found) for title, found in charts.items() if len(found) <= _MOST_CURVES]


def _rank(phase: str, key: str) -> tuple[int, int]:
    known = ("train", _EPOCHS, "val", "test")
    return (key != "loss") + _is_rate(key), known.index(phase) if phase in known else len(known)


def _is_rate(key: str) -> bool:
    return key == "lr" or key.startswith("lr/")


def classes_of(numbers: Mapping[tuple[str, str], float]) -> list[list[str]]:
    """Return a table, its head first, of numbers by phase and name: a row a class, a column a phase and a group."""
    of_classes = names_of_classes(key for _, key in numbers)
    cells: dict[tuple[str, str], str] = {}
    for (phase, key), number in numbers.items():
        if key in of_classes:
            group, _, last = key.rpartition("/")
            cells[f"{phase} {group}", last] = number_text(number)
    columns, rows = (list(dict.fromkeys(cell[place] for cell in cells)) for place in (0, 1))
    return [["", *columns], *([row, *(cells.get((column, row), "") for column in columns)] for row in rows)]


# ------------------------------------------------------------------------------------------- thinning


def thinned(x: np.ndarray, y: np.ndarray, columns: int) -> list[np.ndarray]:
    """Return rows of a curve to be joined: of each of so many columns the least and the greatest number, no others.

    A new piece begins where most of what lies between two of them is NaN. A curve of fewer points is kept as it is.
    """
    kept = np.flatnonzero(np.isfinite(y))
    if len(kept) > 2 * columns:
        places = x[kept]
        width = np.ptp(places) or 1.0
        column = np.minimum((columns * (places - places.min()) / width).astype(int), columns - 1)
        order = np.lexsort((y[kept], column))
        first = np.flatnonzero(np.diff(column[order], prepend=-1))
        last = np.append(first[1:], len(order)) - 1
        kept = np.unique(kept[order[np.concatenate([first, last])]])
    gaps = np.cumsum(~np.isfinite(y))
    between = np.diff(kept) - 1
    is_gap = 2 * np.diff(gaps[kept]) > between
    return [piece for piece in np.split(kept, np.flatnonzero(is_gap) + 1) if len(piece)]


# ------------------------------------------------------------------------------------------- drawing


class _Axis(NamedTuple):
    """From numbers to pixels."""

    low: float
    high: float
    start: float
    end: float

    def pixels(self, values: np.ndarray) -> np.ndarray:
        share = (values - self.low) / (self.high - self.low)
        return np.round(self.start + share * (self.end - self.start), 1)

    def ticks(self) -> list[float]:
        """Return about five round numbers on the axis."""
        raw = (self.high - self.low) / _TICKS
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw)
        return [count * step for count in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]


def figure(chart: Chart) -> Markup:
    """Return a chart with its title, a legend, and axes of which the horizontal one is in training batches."""
    colored = list(zip(chart.curves, _COLORS, strict=False))
    legend = [element("span", element("i", style=f"background:{color}"), curve.name) for curve, color in colored]
    title = element("figcaption", element("b", chart.title), element("span", *legend, class_="legend"))
    drawn = [(curve, color) for curve, color in colored if np.isfinite(curve.y).any()]
    if not drawn:
        return element("figure", title, element("p", "no finite number"), class_="chart")
    across = _axis((curve.x for curve, _ in drawn), _LEFT, _WIDTH - _RIGHT)
    up = _axis((curve.y for curve, _ in drawn), _HEIGHT - _BOTTOM, _TOP)
    lines = [_path(curve, across, up, color) for curve, color in drawn]
    box = f"0 0 {_WIDTH} {_HEIGHT}"
    svg = element("svg", _grid(across, up), *lines, viewBox=box, role="img", aria_label=chart.title)
    return element("figure", title, svg, class_="chart")


def _axis(values: Iterable[np.ndarray], start: float, end: float) -> _Axis:
    found = np.concatenate(list(values))
    found = found[np.isfinite(found)]
    low, high = float(found.min()), float(found.max())
    if not high - low > 1e-9 * max(abs(low), abs(high)):  # also where both are 0
        margin = abs(low) / 2 or 1.0
        low, high = low - margin, high + margin
    return _Axis(low, high, start, end)


def _path(curve: Curve, across: _Axis, up: _Axis, color: str) -> Markup:
    x, y = across.pixels(curve.x), up.pixels(curve.y)
    pieces = [" ".join(f"{x[row]:g},{y[row]:g}" for row in piece) for piece in thinned(curve.x, curve.y, _WIDTH)]
    drawn = "".join(f"M{piece}h0" for piece in pieces)  # a piece of one point is a dot
    width = 1.2 if len(curve.x) > _WIDTH or curve.name == "train" else 2
    return element("path", element("title", curve.name), d=drawn, stroke=color, stroke_width=width)


def _grid(across: _Axis, up: _Axis) -> Markup:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    parts = [element("line", x1=_LEFT, x2=right, y1=bottom, y2=bottom, class_="axis")]
    for tick, y in zip(up.ticks(), up.pixels(np.array(up.ticks())), strict=True):
        parts.append(element("line", x1=_LEFT, x2=right, y1=y, y2=y, class_="grid"))
        parts.append(element("text", f"{tick:.5g}", x=_LEFT - 6, y=y + 4, text_anchor="end"))
    for tick, x in zip(across.ticks(), across.pixels(np.array(across.ticks())), strict=True):
        parts.append(element("line", x1=x, x2=x, y1=bottom, y2=bottom + 4, class_="axis"))
        parts.append(element("text", f"{tick:,.7g}", x=x, y=bottom + 17, text_anchor="middle"))
    parts.append(element("text", "training batches", x=right, y=_HEIGHT - 4, text_anchor="end", class_="name"))
    return joined(*parts)
