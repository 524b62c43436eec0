"""Weight, sum and sum of squares of named numbers over a pass, and over the interval since the last log line.

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

from vision3d_engine.core.errors import ResultError
from vision3d_engine.core.tree import describe
from vision3d_engine.distributed.coordination.reductions import Sums
from vision3d_engine.metrics.step_weights import Weights, plain_weight, row_weight

# Steps whose numbers wait on the device before they are summed up there; bounds memory between rare log lines.
_MAX_ROWS = 256
_NOT_ONE_NUMBER = (
    "'{}' is {} in step {}, though it was one number before; result dicts hold one number a key. Log its mean, and put "
    "the rest into the output dict"
)
# Summed blocks that are kept until a log line, to find the step that was not finite.
_MAX_BLOCKS = 64

AddUp = Callable[[Sums], Sums]
Shared = Mapping[str, torch.Tensor | None] | None


class RunningMeans:
    """Running means of the dicts that the steps of one pass return.

    A key's mean is over the steps that had it, each with its weight: ``sum(w * x) / sum(w)``. Values and weights may be
    python numbers, numpy scalars, or tensors and arrays of one element; a tensor may be freed, or changed in place, as
    soon as `update` returns. A value without weight may be NaN.

    Args:
        add_up: returns the sums of all processes, given those of this one (``World.named_sums``).

    Attributes:
        weightless: keys whose numbers in the last interval weighed nothing on any process; their means are NaN.
    """

    def __init__(self, add_up: AddUp = lambda sums: sums) -> None:
        self._add_up = add_up
        self._keys: dict[str, None] = {}
        self._total: Sums = {}
        self._interval: Sums = {}
        self._waiting: dict[tuple[str, ...], _Rows] = {}
        self._count = 0
        self._first_bad: dict[str, int] = {}
        self.weightless: set[str] = set()

    def update(self, results: Mapping[str, Any], weights: Weights = 1) -> None:
        """Take in the numbers of one step; never waits for the device.

        Args:
            results: the numbers.
            weights: what they weigh, for all keys alike or in a dict by key.
        """
        self._count += 1
        tensors = {key: value for key, value in results.items() if isinstance(value, torch.Tensor)}
        if len(tensors) < len(results):
            self._add_numbers({key: value for key, value in results.items() if key not in tensors}, weights)
        if tensors:
            rows = self._waiting.get(keys := tuple(tensors)) or self._new_rows(keys)
            weight = weights if type(weights) is int else row_weight(weights, keys)
            rows.append([x.detach() if x.requires_grad else x for x in tensors.values()], self._count, weight)
        if len(results) != len(self._keys) or results.keys() != self._keys.keys():
            self._keys |= dict.fromkeys(results)

    def _new_rows(self, keys: tuple[str, ...]) -> "_Rows":
        return self._waiting.setdefault(keys, _Rows(keys))

    def _add_numbers(self, values: Mapping[str, Any], weights: Weights) -> None:
        """Add numbers of the host straight to the interval; where their weights are on the device, there."""
        for key, value in values.items():
            number = _number(value, key, self._count)
            weight = weights.get(key, 1) if isinstance(weights, Mapping) else weights
            if isinstance(weight, torch.Tensor):
                scalar = torch.full((), number, dtype=_exact(weight.device), device=weight.device)
                self._new_rows((key,)).append([scalar], self._count, row_weight(weight, (key,)))
            else:
                weight = float(plain_weight(weight))
                share = (weight, number * weight, number * number * weight) if weight else (0.0, 0.0, 0.0)
                self._interval[key] = _add(self._interval.get(key), share)

    def interval_means(self, *also: torch.Tensor, shared: Shared = None) -> tuple[dict[str, float], list[float], Sums]:
        """Return the means since the last call, over all processes, and start an interval; one copy from the device.

        Args:
            also: single numbers on the device that are read in the same copy and returned as they are.
            shared: others by name, or None for what only others have; their sums travel with the means.
        """
        present = {name: number for name, number in (shared or {}).items() if number is not None}
        extra = self._read([*also, *present.values()])
        interval, self._interval = self._interval, {}
        _merge(self._total, interval)
        others = {name: (1.0, x, x * x) for name, x in zip(present, extra[len(also) :], strict=True)}
        sums = self._sum_up(interval, others)
        self.weightless = {key for key, (weight, *_) in sums.items() if weight == 0}
        summed = {name: sums.pop(name) for name in shared or () if name in sums}
        return _means_of(sums), extra[: len(also)], summed

    def means(self) -> dict[str, float]:
        """Return the means of the whole pass, over all processes; one copy from the device."""
        self._read()
        return _means_of(self._sum_up(_merge(dict(self._total), self._interval), {}))

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

    def _sum_up(self, sums: Sums, others: Sums) -> Sums:
        """Return sums over all processes; keys are in the order in which they first came."""
        return self._add_up({key: sums[key] for key in self._keys if key in sums} | others)

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
    """Vectors of the same keys, one a step, each with its weight: one number, or one a key as a tuple or vector."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._keys = keys
        self._rows: list[torch.Tensor] = []
        self._steps: list[tuple[int, Any]] = []
        self._types: list[torch.dtype] = []
        self._is_mixed = False
        self._sums: torch.Tensor | None = None
        self._blocks: deque[tuple[list[int], torch.Tensor]] = deque(maxlen=_MAX_BLOCKS)

    def append(self, scalars: list[torch.Tensor], number: int, weight: Any) -> None:
        """Copy the values of one step, whose number is given, into one vector."""
        self._steps.append((number, weight))
        if self._types != (types := [x.dtype for x in scalars]):
            self._types, self._is_mixed = types, len(set(types)) > 1
        if self._is_mixed:  # stacked as they are, integers would be rounded to the floats beside them
            scalars = [x.to(_exact(x.device)) for x in scalars]
        try:
            row = torch.stack(scalars)
        except RuntimeError:  # several devices, or shapes such as (1,); to look for them would cost every step
            row = self._flat(scalars, number)
        self._rows.append(row if row.ndim == 1 else self._flat(scalars, number))
        if len(self._rows) >= _MAX_ROWS:
            self.sum_up()

    def _flat(self, scalars: list[torch.Tensor], number: int) -> torch.Tensor:
        """Return the values in one vector on one device, if each is one number."""
        found = [_scalar(value, key, number) for value, key in zip(scalars, self._keys, strict=True)]
        return torch.stack([value.to(found[0].device) for value in found])

    def state_dict(self) -> dict[str, Any]:
        """Return the sums and the rows that wait, as they are."""
        rows = torch.stack(self._rows) if self._rows else None
        numbers, weights = [number for number, _ in self._steps], [weight for _, weight in self._steps]
        return {"keys": list(self._keys), "sums": self._sums, "rows": rows, "numbers": numbers, "weights": weights}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "_Rows":
        """Return rows with a saved state; they stay on the host until the next sum moves them."""
        rows = cls(state["keys"])
        rows._rows = [] if state["rows"] is None else list(state["rows"])
        rows._steps = list(zip(state["numbers"], state.get("weights", [1] * len(rows._rows)), strict=True))
        rows._sums = state["sums"]
        if rows._sums is not None and len(rows._sums) == 2:  # noqa: PLR2004  of a file that counts steps beside the sums
            counts = torch.full_like(rows._sums[:1], state["count"] - len(rows._rows))
            rows._sums = torch.cat([counts, rows._sums])
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
        """Return weight, sum and sum of squares by key, given what `sum_up` returned, brought to the host."""
        weights, sums, squares = (list(islice(numbers, len(self._keys))) for _ in range(3))
        return {key: (weights[i], sums[i], squares[i]) for i, key in enumerate(self._keys)}

    def _stacked(self) -> torch.Tensor:
        """Return the waiting rows as one block ``(steps, keys)``; restored ones follow the others to their device."""
        try:
            return torch.stack(self._rows)
        except RuntimeError:
            return torch.stack([row.to(self._rows[-1]) for row in self._rows])

    def sum_up(self) -> torch.Tensor:
        """Add the waiting rows to the sums on the device; return weights, sums and squares ``(3, keys)``."""
        if self._sums is not None and not self._rows:
            return self._sums
        block = self._stacked()
        block = block.to(_exact(block.device))
        weights = _weights_of([weight for _, weight in self._steps], block)
        block = block if self._weigh_something() else block.masked_fill(weights == 0, 0)
        sums = torch.stack([weights.sum(0), (weights * block).sum(0), (weights * block * block).sum(0)])
        self._sums = sums if self._sums is None else self._sums.to(sums.device) + sums
        self._blocks.append(([number for number, _ in self._steps], block))
        self._rows, self._steps = [], []
        return self._sums

    def _weigh_something(self) -> bool:
        return all(type(weight) is int and weight > 0 for _, weight in self._steps)


def _exact(device: torch.device) -> torch.dtype:
    """Return the type in which sums lose least on a device."""
    return torch.float32 if device.type == "mps" else torch.float64


def _number(value: Any, key: str, number: int) -> float:
    """Return a number of the host as a float."""
    try:
        return value.item() if isinstance(value, np.ndarray) else float(value)
    except (TypeError, ValueError) as error:
        raise ResultError(_NOT_ONE_NUMBER.format(key, describe(value), number)) from error


def _scalar(value: torch.Tensor, key: str, number: int) -> torch.Tensor:
    """Return a tensor of one element without dimensions."""
    if value.numel() != 1:
        raise ResultError(_NOT_ONE_NUMBER.format(key, describe(value), number))
    return value.reshape(())


def _weights_of(weights: Sequence[Any], block: torch.Tensor) -> torch.Tensor:
    """Return the weights of rows as a block ``(steps, keys)``; the device is not waited for."""
    width = block.shape[1]
    if not any(isinstance(weight, torch.Tensor | tuple) for weight in weights):
        return _on_device([float(weight) for weight in weights], block).unsqueeze(1).expand(-1, width)
    rows = [weight if isinstance(weight, torch.Tensor | tuple) else (float(weight),) * width for weight in weights]
    return torch.stack([_on_device(row, block) if isinstance(row, tuple) else row.to(block) for row in rows])


def _on_device(numbers: Sequence[float], block: torch.Tensor) -> torch.Tensor:
    host = torch.tensor(numbers, dtype=block.dtype)
    return host.pin_memory().to(block.device, non_blocking=True) if block.is_cuda else host.to(block.device)


def _means_of(sums: Sums) -> dict[str, float]:
    return {key: total / count if count else math.nan for key, (count, total, _) in sums.items()}


def _add(a: tuple[float, float, float] | None, b: tuple[float, float, float]) -> tuple[float, float, float]:
    return b if a is None else (a[0] + b[0], a[1] + b[1], a[2] + b[2])


def _merge(into: Sums, sums: Sums) -> Sums:
    """Add sums to others, key by key."""
    for key, value in sums.items():
        into[key] = _add(into.get(key), value)
    return into
