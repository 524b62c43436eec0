"""The cases of a few batches, whose numbers may still be on the device: they are read together, in one copy."""

import time
from typing import Any

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
        self._waiting: list[torch.Tensor] = []
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
        copy = torch.empty((), dtype=exact_type(value.device), device=value.device)
        self._waiting.append(copy.copy_(value.detach().reshape(())))
        return _Waiting(len(self._waiting) - 1, is_whole=not value.is_floating_point())

    def read(self) -> list[Line]:
        """Return the lines with all their numbers, in one copy from the device, and begin a new block."""
        numbers, lines = on_host(self._waiting), self.lines
        self.lines, self._waiting, self._since = [], [], time.monotonic()
        for case in (case for line in lines for case in line["cases"]):
            case["values"] = {key: _read(value, numbers) for key, value in case["values"].items()}
            case["weights"] = _read(case["weights"], numbers)
        return lines


class _Waiting:
    """Stands for a number that is on the device."""

    def __init__(self, place: int, *, is_whole: bool) -> None:
        self.place, self.is_whole = place, is_whole


def _read(value: Any, numbers: list[float]) -> Any:
    if isinstance(value, dict):
        return {key: _read(item, numbers) for key, item in value.items()}
    if not isinstance(value, _Waiting):
        return value
    return int(numbers[value.place]) if value.is_whole else numbers[value.place]


def _number(key: str, value: Any) -> float:
    """Return a number of the host as JSON has it."""
    number = value.item() if hasattr(value, "item") else value
    try:
        return number if type(number) in {int, float} else float(number)
    except (TypeError, ValueError) as error:
        raise ResultError(NOT_ONE_NUMBER.format(key, describe(value), 1)) from error
