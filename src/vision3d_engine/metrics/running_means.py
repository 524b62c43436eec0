"""Count, sum and sum of squares of named numbers over a pass, and over the interval since the last log line.

Numbers of a step are copied into one small vector on their device; nothing is read back until a log line asks, and then
all of them in one copy. What is kept does not grow with the number of steps.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch

from vision3d_engine.distributed.coordination.reductions import Sums

# Steps whose numbers wait on the device before they are summed up there; bounds memory between rare log lines.
_MAX_ROWS = 256
# Summed blocks that are kept until a log line, to find the step that was not finite.
_MAX_BLOCKS = 64

AddUp = Callable[[Sums], Sums]


class RunningMeans:
    """Running means of the dicts that the steps of one pass return.

    A key's mean is over the steps that had it. Values may be python numbers, numpy scalars, or tensors and arrays of
    one element; a tensor may be freed, or changed in place, as soon as `update` returns.

    Args:
        add_up: returns the sums of all processes, given those of this one (``World.named_sums``).
    """

    def __init__(self, add_up: AddUp = lambda sums: sums) -> None:
        self._add_up = add_up
        self._keys: dict[str, None] = {}
        self._total: Sums = {}
        self._interval: Sums = {}
        self._waiting: dict[tuple[str, ...], _Rows] = {}
        self._count = 0
        self._first_bad: dict[str, int] = {}

    def update(self, results: Mapping[str, Any]) -> None:
        """Take in the numbers of one step; never waits for the device."""
        self._count += 1
        tensors = {key: value for key, value in results.items() if isinstance(value, torch.Tensor)}
        if len(tensors) < len(results):
            self._add_numbers({key: value for key, value in results.items() if key not in tensors})
        if tensors:
            if (rows := self._waiting.get(keys := tuple(tensors))) is None:
                rows = self._waiting[keys] = _Rows(keys)
            rows.append([value.detach() if value.requires_grad else value for value in tensors.values()], self._count)
        if len(results) != len(self._keys) or results.keys() != self._keys.keys():
            self._keys |= dict.fromkeys(results)

    def _add_numbers(self, values: Mapping[str, Any]) -> None:
        """Add numbers of the host straight to the interval."""
        for key, value in values.items():
            number = value.item() if isinstance(value, np.ndarray) else float(value)
            self._interval[key] = _add(self._interval.get(key), (1.0, number, number * number))

    def interval_means(self, *also: torch.Tensor) -> tuple[dict[str, float], list[float]]:
        """Return the means since the last call, over all processes, and start an interval; one copy from the device.

        Args:
            also: single numbers on the device that are read in the same copy and returned as they are.
        """
        extra = self._read(also)
        interval, self._interval = self._interval, {}
        _merge(self._total, interval)
        return self._means(interval), extra

    def means(self) -> dict[str, float]:
        """Return the means of the whole pass, over all processes; one copy from the device."""
        self._read()
        return self._means(_merge(dict(self._total), self._interval))

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
        self._waiting = {tuple(rows["keys"]): _Rows.from_state(rows) for rows in state["waiting"]}

    def add_state(self, state: Mapping[str, Any]) -> None:
        """Take in the saved state of another process as well."""
        other = RunningMeans()
        other.load_state_dict(state)
        other._read()
        self._keys |= other._keys
        _merge(self._total, other._total)
        _merge(self._interval, other._interval)

    def _means(self, sums: Sums) -> dict[str, float]:
        """Return the means over all processes, in the order in which the keys first came."""
        ordered = {key: sums[key] for key in self._keys if key in sums}
        summed = self._add_up(ordered)
        return {key: total / count if count else math.nan for key, (count, total, _) in summed.items()}

    def first_not_finite(self, key: str) -> int | None:
        """Return the number of the update, from 1, that first held NaN or infinity under a key, as far as read."""
        return self._first_bad.get(key)

    def _read(self, also: Sequence[torch.Tensor] = ()) -> list[float]:
        """Bring what waits on the device into the interval, and return the other numbers; one copy for all."""
        groups, self._waiting = list(self._waiting.values()), {}
        numbers = iter(_on_host([*(rows.sum_up() for rows in groups), *also]))
        for rows in groups:
            sums = rows.take(numbers)
            _merge(self._interval, sums)
            bad = [key for key, (_, total, _) in sums.items() if not math.isfinite(total)]
            self._first_bad = rows.first_not_finite(bad) | self._first_bad
        return list(numbers)


def _on_host(tensors: Sequence[torch.Tensor]) -> list[float]:
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
    numbers = zip(tensors, _on_host([*tensors.values()]), strict=True)
    read = {key: number if tensors[key].is_floating_point() else int(number) for key, number in numbers}
    return {key: read.get(key, value) for key, value in results.items()}


class _Rows:
    """Vectors of the same keys, one a step."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._keys = keys
        self._rows: list[torch.Tensor] = []
        self._summed = 0
        self._sums: torch.Tensor | None = None
        self._numbers: list[int] = []
        self._blocks: deque[tuple[list[int], torch.Tensor]] = deque(maxlen=_MAX_BLOCKS)

    def append(self, scalars: list[torch.Tensor], number: int) -> None:
        """Copy the values of one step, whose number is given, into one vector."""
        self._numbers.append(number)
        try:
            row = torch.stack(scalars)
        except RuntimeError:  # several devices, or shapes such as (1,); to look for them would cost every step
            row = torch.stack([scalar.reshape(()).to(scalars[0].device) for scalar in scalars])
        self._rows.append(row if row.ndim == 1 else row.reshape(-1))
        if len(self._rows) >= _MAX_ROWS:
            self.sum_up()

    def state_dict(self) -> dict[str, Any]:
        """Return count, sums and the rows that wait, as they are."""
        rows = torch.stack(self._rows) if self._rows else None
        state = {"keys": list(self._keys), "count": self._summed + len(self._rows), "sums": self._sums, "rows": rows}
        return state | {"numbers": list(self._numbers)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "_Rows":
        """Return rows with a saved state; they stay on the host until the next sum moves them."""
        rows = cls(state["keys"])
        rows._numbers = list(state["numbers"])
        rows._rows = [] if state["rows"] is None else list(state["rows"])
        rows._summed, rows._sums = state["count"] - len(rows._rows), state["sums"]
        return rows

    def first_not_finite(self, keys: Iterable[str]) -> dict[str, int]:
        """Return the number of the first step that is not finite for each of these keys; reads the last blocks."""
        first: dict[str, int] = {}
        for key in keys:
            column = self._keys.index(key)
            for numbers, block in reversed(self._blocks):
                wrong = (~torch.isfinite(block[:, column])).nonzero()
                if len(wrong):
                    first[key] = numbers[int(wrong[0])]
        return first

    def take(self, numbers: Iterator[float]) -> Sums:
        """Return count, sum and sum of squares by key, given what `sum_up` returned, brought to the host."""
        sums, squares = (list(islice(numbers, len(self._keys))) for _ in range(2))
        return {key: (float(self._summed), sums[i], squares[i]) for i, key in enumerate(self._keys)}

    def _stacked(self) -> torch.Tensor:
        """Return the waiting rows as one block ``(steps, keys)``; restored ones follow the others to their device."""
        try:
            return torch.stack(self._rows)
        except RuntimeError:
            return torch.stack([row.to(self._rows[-1]) for row in self._rows])

    def sum_up(self) -> torch.Tensor:
        """Add the waiting rows to the sums on the device, in float64 where it has that; return sums and squares."""
        if self._sums is not None and not self._rows:
            return self._sums
        block = self._stacked()
        block = block.to(torch.float32 if block.device.type == "mps" else torch.float64)
        sums = torch.stack([block.sum(0), (block * block).sum(0)])
        self._sums = sums if self._sums is None else self._sums.to(sums.device) + sums
        self._summed += len(block)
        self._blocks.append((self._numbers, block))
        self._rows, self._numbers = [], []
        return self._sums


def _add(a: tuple[float, float, float] | None, b: tuple[float, float, float]) -> tuple[float, float, float]:
    return b if a is None else (a[0] + b[0], a[1] + b[1], a[2] + b[2])


def _merge(into: Sums, sums: Sums) -> Sums:
    """Add sums to others, key by key."""
    for key, value in sums.items():
        into[key] = _add(into.get(key), value)
    return into
