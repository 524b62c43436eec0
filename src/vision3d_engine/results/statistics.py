"""What the cases of a test say together: mean, median and quartiles of each number, and the worst cases."""

import heapq
import math
from array import array
from collections.abc import Iterable, Mapping
from contextlib import suppress
from fractions import Fraction
from operator import mul
from typing import Any

import numpy as np

from vision3d_engine.core.errors import did_you_mean, listed
from vision3d_engine.results.journal import Line

Statistics = dict[str, dict[str, float]]
"""``cases``, ``mean``, ``median``, ``lower_quartile`` and ``upper_quartile`` of each number, by its name."""

#: how the numbers of a case are ordered by which cases are bad
WORST = {"largest": 1, "smallest": -1}


class CaseStatistics:
    """Collects the numbers of cases, one float for each number of a case and one for its weight."""

    def __init__(self) -> None:
        self._numbers: dict[str, tuple[array, array]] = {}

    def add(self, case: Line) -> None:
        """Take in a case; a number without weight may be NaN, and does not count."""
        for key, value in case["values"].items():
            weight = weight_of(case, key)
            values, weights = self._numbers.setdefault(key, (array("d"), array("d")))
            if weight:
                values.append(value)
                weights.append(weight)

    def means(self) -> dict[str, float]:
        """Return the weighted mean of each number; sums are exact, so that no order of the cases changes a digit."""
        return {key: _mean(values, weights) for key, (values, weights) in self._numbers.items()}

    def table(self) -> Statistics:
        """Return the statistics; median and quartiles are those of the cases, whatever they weigh."""
        return {key: _statistics(values, weights) for key, (values, weights) in self._numbers.items()}


def weight_of(case: Line, key: str) -> float:
    """Return what a number of a case weighs."""
    weights = case["weights"]
    return weights.get(key, 1) if isinstance(weights, Mapping) else weights


def _mean(values: array, weights: array) -> float:
    if not weights:
        return math.nan
    if infinite := [value for value in values if not math.isfinite(value)]:
        return sum(infinite)
    with suppress(OverflowError):
        mean = math.fsum(map(mul, values, weights)) / math.fsum(weights)
        if math.isfinite(mean):
            return mean
    return _mean_of_huge(values, weights)


def _mean_of_huge(values: array, weights: array) -> float:
    """Return a mean whose sums are too large for a float."""
    exact = [Fraction(weight) for weight in weights]
    return float(sum(map(mul, map(Fraction, values), exact)) / sum(exact))


def _quantile(ordered: np.ndarray, share: float) -> float:
    """Return a quantile of sorted numbers, between two of them in proportion; also where others are infinite."""
    place = share * (len(ordered) - 1)
    lower, upper = float(ordered[math.floor(place)]), float(ordered[math.ceil(place)])
    beyond = place % 1
    return lower if lower == upper else lower * (1 - beyond) + upper * beyond


def _statistics(values: array, weights: array) -> dict[str, float]:
    ordered = np.sort(np.frombuffer(values)) if values else np.array([math.nan])
    is_known = not math.isnan(ordered[-1])  # which comes last
    lower, median, upper = (_quantile(ordered, share) if is_known else math.nan for share in (0.25, 0.5, 0.75))
    found = {"mean": _mean(values, weights), "median": median, "lower_quartile": lower, "upper_quartile": upper}
    return {"cases": len(values), **found}


def worst_cases(cases: Iterable[Line], by: tuple[str, str], count: int) -> list[tuple[str, float]]:
    """Return names and numbers of the worst cases that count, the worst first; NaN is worse than any number.

    Args:
        cases: the cases.
        by: the number's name, and whether the ``"largest"`` or the ``"smallest"`` is the worst.
        count: how many.
    """
    key, sign = by[0], WORST[by[1]]

    def badness(case: tuple[str, float]) -> float:
        return math.inf if math.isnan(case[1]) else sign * case[1]

    counted = (case for case in cases if key in case["values"] and weight_of(case, key))
    found = ((case["name"], case["values"][key]) for case in counted)
    return heapq.nlargest(count, found, key=badness)


def what_is_wrong_with(by: Any, names: Iterable[str]) -> str | None:
    """Say what is wrong with a wish for the worst cases; None if nothing is."""
    names = list(names)
    if not (isinstance(by, tuple | list) and len(by) == 2 and by[1] in WORST):  # noqa: PLR2004
        return f"worst_by is {by!r}; expected a number's name and 'largest' or 'smallest', as in ('RRE', 'largest')"
    if by[0] in names:
        return None
    return f"worst_by names '{by[0]}', which no case has{did_you_mean(by[0], names)} (there are: {listed(names)})"


def statistics_text(statistics: Statistics) -> str:
    """Return a table for people."""
    columns = ("cases", "mean", "median", "lower_quartile", "upper_quartile")
    width = max(map(len, statistics), default=0)
    lines = [f"    {'':<{width}}" + "".join(f"  {name:>14}" for name in columns)]
    for key, row in statistics.items():
        lines.append(f"    {key:<{width}}" + "".join(f"  {row[name]:>14.6g}" for name in columns))
    return "\n".join(lines)
