"""Weight, sum and sum of squares of named numbers over a pass, and over the interval since the last log line.

Numbers of a step are copied into one small vector on their device; nothing is read back until a log line asks, and then
all of them in one copy. What is kept does not grow with the number of steps.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from vision3d_engine.core.errors import ResultError
from vision3d_engine.core.tree import describe
from vision3d_engine.distributed.coordination.reductions import Sums
from vision3d_engine.metrics.step_rows import NOT_ONE_NUMBER, StepNumbers, StepRows, exact_type
from vision3d_engine.metrics.step_weights import Weights, plain_weight, row_weight

#: key under which batches that were left out are counted.
SKIPPED = "\0skipped"
AddUp = Callable[[Sums], Sums]
Shared = Mapping[str, torch.Tensor | None] | None


class RunningMeans:
    """Running means of the dicts that the steps of one pass return.

    A key's mean is over the steps that had it, each with its weight: ``sum(w * x) / sum(w)``. Values and weights may be
    python numbers, numpy scalars, or tensors and arrays of one element; a tensor may be freed, or changed in place, as
    soon as `update` returns. A value without weight may be NaN.

    Args:
        add_up: returns the sums of all processes, given those of this one (``World.named_sums``).
        keeps_steps: whether the values of single steps are read too.

    Attributes:
        steps: values on the device of the single steps that were read last, if these are kept.
        weightless: keys whose numbers in the last interval weighed nothing on any process; their means are NaN.
        counted: what was counted by `count`, over all processes, in what the last means are of.
    """

    def __init__(self, add_up: AddUp = lambda sums: sums, *, keeps_steps: bool = False) -> None:
        self._add_up, self._keeps_steps = add_up, keeps_steps
        self.steps: list[StepNumbers] = []
        self._keys: dict[str, None] = {}
        self._total: Sums = {}
        self._interval: Sums = {}
        self._waiting: dict[tuple[str, ...], StepRows] = {}
        self._count = 0
        self._first_bad: dict[str, int] = {}
        self.weightless: set[str] = set()
        self.counted: dict[str, int] = {}

    def count(self, key: str) -> None:
        """Count one more of something beside the numbers of steps."""
        self._keys[key] = None
        self._interval[key] = _add(self._interval.get(key), (1.0, 1.0, 1.0))

    def update(self, results: Mapping[str, Any], weights: Weights = 1, number: int | None = None) -> None:
        """Take in the numbers of one step; never waits for the device.

        Args:
            results: the numbers.
            weights: what they weigh, for all keys alike or in a dict by key.
            number: of the step; None for one more than that of the last call.
        """
        self._count = self._count + 1 if number is None else number
        tensors = {key: value for key, value in results.items() if isinstance(value, torch.Tensor)}
        if len(tensors) < len(results):
            self._add_numbers({key: value for key, value in results.items() if key not in tensors}, weights)
        if tensors:
            rows = self._waiting.get(keys := tuple(tensors)) or self._new_rows(keys)
            weight = weights if type(weights) is int else row_weight(weights, keys)
            rows.append([x.detach() if x.requires_grad else x for x in tensors.values()], self._count, weight)
        if len(results) != len(self._keys) or results.keys() != self._keys.keys():
            self._keys |= dict.fromkeys(results)

    def _new_rows(self, keys: tuple[str, ...]) -> "StepRows":
        return self._waiting.setdefault(keys, StepRows(keys))

    def _add_numbers(self, values: Mapping[str, Any], weights: Weights) -> None:
        """Add numbers of the host straight to the interval; where their weights are on the device, there."""
        for key, value in values.items():
            number = _number(value, key, self._count)
            weight = weights.get(key, 1) if isinstance(weights, Mapping) else weights
            if isinstance(weight, torch.Tensor):
                scalar = torch.full((), number, dtype=exact_type(weight.device), device=weight.device)
                self._new_rows((key,)).append([scalar], self._count, row_weight(weight, (key,)))
            else:
                weight = float(plain_weight(weight))
                share = (weight, number * weight, number * number * weight) if weight else (0.0, 0.0, 0.0)
                self._interval[key] = _add(self._interval.get(key), share)

    def interval_means(self, *also: torch.Tensor, shared: Shared = None) -> tuple[dict[str, float], list[float], Sums]:
        """Return the means since the last call, over all processes, and start an interval; one copy from the device.

        Args:
            also: tensors on the device whose numbers are read in the same copy and returned as they are, in a row.
            shared: others by name, or None for what only others have; their sums travel with the means.
        """
        present = {name: number for name, number in (shared or {}).items() if number is not None}
        extra = self._read([*also, *present.values()])
        interval, self._interval = self._interval, {}
        _merge(self._total, interval)
        count = sum(map(torch.numel, also))
        others = {name: (1.0, x, x * x) for name, x in zip(present, extra[count:], strict=True)}
        sums = self._sum_up(interval, others)
        self._take_counted(sums)
        self.weightless = {key for key, (weight, *_) in sums.items() if weight == 0}
        summed = {name: sums.pop(name) for name in shared or () if name in sums}
        return _means_of(sums), extra[:count], summed

    def means(self) -> dict[str, float]:
        """Return the means of the whole pass, over all processes; one copy from the device."""
        self._read()
        sums = self._sum_up(_merge(dict(self._total), self._interval), {})
        self._take_counted(sums)
        return _means_of(sums)

    def _take_counted(self, sums: Sums) -> None:
        """Take what was counted out of sums."""
        self.counted = {key: int(sums.pop(key)[0]) for key in (SKIPPED,) if key in sums}

    def state_dict(self) -> dict[str, Any]:
        """Return all that has been taken in, without summing anything up, so that saving changes no later digit."""
        return {
            "keys": list(self._keys),
            "count": self._count,
            "total": {key: list(value) for key, value in self._total.items()},
            "window": {key: list(value) for key, value in self._interval.items()},
            "waiting": [rows.state_dict() for rows in self._waiting.values()],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state."""
        self._keys = dict.fromkeys(state["keys"])
        self._count = state["count"]
        self._total, self._interval = (
            {key: (count, total, squares) for key, (count, total, squares) in state[name].items()}
            for name in ("total", "window")
        )
        self._waiting = {tuple(rows["keys"]): StepRows.from_state(rows) for rows in state["waiting"]}

    def add_state(self, state: Mapping[str, Any]) -> None:
        """Take in the saved state of another process as well."""
        other = RunningMeans()
        other.load_state_dict(state)
        other._read()
        self._keys |= other._keys
        _merge(self._total, other._total)
        _merge(self._interval, other._interval)

    def _sum_up(self, sums: Sums, others: Sums) -> Sums:
        """Return sums over all processes; keys are in the order in which they first came."""
        return self._add_up({key: sums[key] for key in self._keys if key in sums} | others)

    def first_not_finite(self, key: str) -> int | None:
        """Return the number of the step that first held NaN or infinity under a key, as far as read."""
        return self._first_bad.get(key)

    def _read(self, also: Sequence[torch.Tensor] = ()) -> list[float]:
        """Bring what waits on the device into the interval, and return the other numbers; one copy for all."""
        groups, self._waiting = list(self._waiting.values()), {}
        sums = [rows.sum_up() for rows in groups]
        values = [each for rows in groups for each in rows.values()] if self._keeps_steps else []
        numbers = iter(on_host([*sums, *values, *also]))
        for rows in groups:
            self._take_sums(rows, rows.take(numbers))
        self.steps = [rows.take_values(numbers) for rows in groups] if self._keeps_steps else []
        return list(numbers)

    def _take_sums(self, rows: StepRows, sums: Sums) -> None:
        _merge(self._interval, sums)
        bad = [key for key, (_, total, _) in sums.items() if not math.isfinite(total)]
        self._first_bad = rows.first_not_finite(bad) | self._first_bad


def on_host(tensors: Sequence[torch.Tensor]) -> list[float]:
    """Return the numbers of tensors of one device, one after the other, in one copy; waits for the device."""
    if len(tensors) <= 1:
        return tensors[0].flatten().tolist() if tensors else []
    try:
        return torch.cat([tensor.detach().flatten() for tensor in tensors]).tolist()
    except RuntimeError:  # several devices
        return [number for tensor in tensors for number in tensor.flatten().tolist()]


def read_numbers(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return a result dict with its tensors of one element as numbers; one copy from the device."""
    tensors = {key: value for key, value in results.items() if isinstance(value, torch.Tensor)}
    numbers = zip(tensors, on_host([*tensors.values()]), strict=True)
    read = {key: number if tensors[key].is_floating_point() else int(number) for key, number in numbers}
    return {key: read.get(key, value) for key, value in results.items()}


def _number(value: Any, key: str, number: int) -> float:
    """Return a number of the host as a float."""
    try:
        return value.item() if isinstance(value, np.ndarray) else float(value)
    except (TypeError, ValueError) as error:
        raise ResultError(NOT_ONE_NUMBER.format(key, describe(value), number)) from error


def _means_of(sums: Sums) -> dict[str, float]:
    return {key: total / count if count else math.nan for key, (count, total, _) in sums.items()}


def _add(a: tuple[float, float, float] | None, b: tuple[float, float, float]) -> tuple[float, float, float]:
    return b if a is None else (a[0] + b[0], a[1] + b[1], a[2] + b[2])


def _merge(into: Sums, sums: Sums) -> Sums:
    """Add sums to others, key by key."""
    for key, value in sums.items():
        into[key] = _add(into.get(key), value)
    return into
