"""The cases of a few batches, whose numbers may still be on the device: they are read together, in one copy."""

import math
import time
from typing import Any, NamedTuple

import torch

from vision3d_engine.core.errors import ResultError
from vision3d_engine.core.tree import describe
from vision3d_engine.metrics.running_means import on_host
from vision3d_engine.metrics.step_rows import NOT_ONE_NUMBER, exact_type
from vision3d_engine.results.journal import Line

# A block ends with so many cases, or after so many seconds; a test that is killed loses at most its last block.
_CASES, _SECONDS = 64, 1.0


class CaseBlock:
    """Lines whose numbers may still be on the device."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self._waiting = _waiting()
        self._since = time.monotonic()

    @property
    def is_full(self) -> bool:
        """Whether it shall be read now."""
        many = sum(len(line["cases"]) for line in self.lines[-_CASES:]) >= _CASES or len(self.lines) >= _CASES
        return many or time.monotonic() - self._since >= _SECONDS

    def take(self, key: str, value: Any) -> Any:
        """Return a number of the host, or what stands for one on a device until the block is read."""
        if not isinstance(value, torch.Tensor):
            return _number(key, value)
        if value.numel() != 1:
            raise ResultError(NOT_ONE_NUMBER.format(key, describe(value), len(self.lines) + 1))
        is_whole = not (value.is_floating_point() or value.is_complex())
        copy = torch.empty((), dtype=torch.int64 if is_whole else exact_type(value.device), device=value.device)
        self._waiting[is_whole].append(copy.copy_(value.detach().reshape(())))
        return _Waiting(len(self._waiting[is_whole]) - 1, is_whole)

    def read(self) -> list[Line]:
        """Return the lines with all their numbers, in one copy from the device for each type, and begin a new block.

        Raises:
            ResultError: for a weight that is none, naming the case.
        """
        numbers, lines = {is_whole: on_host(tensors) for is_whole, tensors in self._waiting.items()}, self.lines
        self.lines, self._waiting, self._since = [], _waiting(), time.monotonic()
        for case in (case for line in lines for case in line["cases"]):
            case["values"] = {key: _read(value, numbers) for key, value in case["values"].items()}
            case["weights"] = _read(case["weights"], numbers)
            _check_weights(case)
        return lines


class _Waiting(NamedTuple):
    """Stands for a number that is on the device."""

    place: int
    is_whole: bool


def _waiting() -> dict[bool, list[torch.Tensor]]:
    """Return where numbers wait, floats and whole ones apart: a float has fewer digits than a whole number."""
    return {False: [], True: []}


def _read(value: Any, numbers: dict[bool, list[float]]) -> Any:
    if isinstance(value, dict):
        return {key: _read(item, numbers) for key, item in value.items()}
    return numbers[value.is_whole][value.place] if isinstance(value, _Waiting) else value


def _check_weights(case: dict[str, Any]) -> None:
    weights = case["weights"]
    for key, weight in weights.items() if isinstance(weights, dict) else [("all its numbers", weights)]:
        if not (weight >= 0 and math.isfinite(weight)):
            message = f"metric_weight returned {weight} of the case '{case['name']}' for {key}; expected 0 or a "
            raise ResultError(f"{message}positive, finite number: what a case weighs in the means")


def _number(key: str, value: Any) -> float:
    """Return a number of the host as JSON has it."""
    number = value.item() if hasattr(value, "item") else value
    try:
        as_float = float(number)
        return number if type(number) in {int, float} else as_float
    except OverflowError as error:
        message = f"'{key}' is a number beyond 1.8e308, and so of no float; return its logarithm, or the like"
        raise ResultError(message) from error
    except (TypeError, ValueError) as error:
        raise ResultError(NOT_ONE_NUMBER.format(key, describe(value), 1)) from error
