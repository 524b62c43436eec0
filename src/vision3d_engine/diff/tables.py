"""Numbers by step and name, compared bit for bit."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from vision3d_engine.core.compare import same_bits

Table = Mapping[int, Mapping[str, float]]
"""What was recorded at each step, by name."""

_MANY_ULPS = 10_000


class FirstDifference(NamedTuple):
    """Where a number differs first.

    Attributes:
        key: its name.
        step: the step.
        a: what the first run has there; None for nothing.
        b: the second.
    """

    key: str
    step: int
    a: float | None
    b: float | None


class TableComparison(NamedTuple):
    """How two tables differ.

    Attributes:
        steps: those that both have, in order; none where they have no name in common.
        differences: of each number where it differs first, the earliest before others.
        only_a: names that the second never has in these steps.
        only_b: names that the first never has.
    """

    steps: list[int]
    differences: list[FirstDifference]
    only_a: list[str]
    only_b: list[str]


def compare_tables(a: Table, b: Table) -> TableComparison:
    """Compare the steps that both have; a number that one has at no step is named apart, and no difference."""
    steps = sorted(a.keys() & b.keys())
    names = [dict.fromkeys(key for step in steps for key in table[step]) for table in (a, b)]
    first: dict[str, FirstDifference] = {}
    for step in steps:
        for key in names[0]:
            if key in names[1] and key not in first and not _is_same(a[step].get(key), b[step].get(key)):
                first[key] = FirstDifference(key, step, a[step].get(key), b[step].get(key))
    only = [[key for key in mine if key not in others] for mine, others in (names, names[::-1])]
    steps = steps if names[0].keys() & names[1].keys() else []
    return TableComparison(steps, sorted(first.values(), key=lambda each: each.step), *only)


def _is_same(a: float | None, b: float | None) -> bool:
    return a is b if a is None or b is None else same_bits(a, b)


def apart(a: float | None, b: float | None) -> str:
    """Say how far two numbers are apart: relative to the larger one, and in steps of their type where these are few."""
    if a is None or b is None or not (math.isfinite(a) and math.isfinite(b)):
        return ""
    if a == b:
        return "the sign of zero"
    relative = abs(a - b) / max(abs(a), abs(b))
    count, kind = _ulps(a, b)
    steps = f" ({count} ulp{'s' * (count != 1)} of {kind})" if count <= _MANY_ULPS else ""
    return f"{relative:.1e}{steps}"


def _ulps(a: float, b: float) -> tuple[int, str]:
    """Return how many representable numbers lie between two, in fp32 if both are of that type, else in fp64."""
    with np.errstate(over="ignore"):
        is_single = all(float(np.float32(value)) == value for value in (a, b))
    kind, bits = (np.float32, np.int32) if is_single else (np.float64, np.int64)
    ranks = (int(np.array(value, kind).view(bits)) for value in (a, b))
    negative = -int(np.iinfo(bits).max) - 1
    left, right = (rank if rank >= 0 else negative - rank for rank in ranks)
    return abs(left - right), "fp32" if is_single else "fp64"
