"""Numbers of steps as rows that wait on their device, and their weighted sums there."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch

from vision3d_engine.core.errors import ResultError
from vision3d_engine.core.tree import describe
from vision3d_engine.distributed.coordination.reductions import Sums

# Steps whose numbers wait on the device before they are summed up there; bounds memory between rare log lines.
_MAX_ROWS = 256
NOT_ONE_NUMBER = (
    "'{}' is {} in step {}, though it was one number before; result dicts hold one number a key. Log its mean, and put "
    "the rest into the output dict"
)
# Summed blocks that are kept until a log line, to find the step that was not finite.
_MAX_BLOCKS = 64


@dataclass(frozen=True)
class StepNumbers:
    """What single steps have returned, to the bit.

    Attributes:
        keys: names of the values.
        steps: the steps.
        values: of each step in turn one value a key.
    """

    keys: tuple[str, ...]
    steps: list[int]
    values: list[float]


class StepRows:
    """Vectors of the same keys, one a step, each with its weight: one number, or one a key as a tuple or vector."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._keys = keys
        self._rows: list[torch.Tensor] = []
        self._steps: list[tuple[int, Any]] = []
        self._types: list[torch.dtype] = []
        self._is_mixed = False
        self._sums: torch.Tensor | None = None
        self._blocks: deque[tuple[list[int], torch.Tensor, torch.Tensor]] = deque(maxlen=_MAX_BLOCKS)

    def append(self, scalars: list[torch.Tensor], number: int, weight: Any) -> None:
        """Copy the values of one step, whose number is given, into one vector."""
        self._steps.append((number, weight))
        if self._types != (types := [x.dtype for x in scalars]):
            self._types, self._is_mixed = types, len(set(types)) > 1
        if self._is_mixed:  # stacked as they are, integers would be rounded to the floats beside them
            scalars = [x.to(exact_type(x.device)) for x in scalars]
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
    def from_state(cls, state: Mapping[str, Any]) -> "StepRows":
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
            for numbers, _, block in reversed(self._blocks):
                wrong = (~torch.isfinite(block[:, column])).nonzero()
                if len(wrong):
                    first[key] = numbers[int(wrong[0])]
        return first

    def values(self) -> list[torch.Tensor]:
        """Return the values of the steps that were summed up, blocks ``(steps, keys)``, as far as they are kept."""
        return [values for _, values, _ in self._blocks]

    def take_values(self, numbers: Iterator[float]) -> StepNumbers:
        """Return what `values` returned, brought to the host, with the numbers of the steps."""
        steps = [number for of_block, _, _ in self._blocks for number in of_block]
        return StepNumbers(tuple(self._keys), steps, list(islice(numbers, len(steps) * len(self._keys))))

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
        values = block = block.to(exact_type(block.device))
        weights = _weights_of([weight for _, weight in self._steps], block)
        block = block if self._weigh_something() else block.masked_fill(weights == 0, 0)
        sums = torch.stack([weights.sum(0), (weights * block).sum(0), (weights * block * block).sum(0)])
        self._sums = sums if self._sums is None else self._sums.to(sums.device) + sums
        self._blocks.append(([number for number, _ in self._steps], values, block))
        self._rows, self._steps = [], []
        return self._sums

    def _weigh_something(self) -> bool:
        return all(type(weight) is int and weight > 0 for _, weight in self._steps)


def exact_type(device: torch.device) -> torch.dtype:
    """Return the type in which sums lose least on a device."""
    return torch.float32 if device.type == "mps" else torch.float64


def _scalar(value: torch.Tensor, key: str, number: int) -> torch.Tensor:
    """Return a tensor of one element without dimensions."""
    if value.numel() != 1:
        raise ResultError(NOT_ONE_NUMBER.format(key, describe(value), number))
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
