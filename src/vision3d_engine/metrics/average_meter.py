"""Statistics of one series of numbers."""

from array import array
from typing import Any

import numpy as np
import torch

# Tensors wait on the device until somebody asks, or until this many have come together.
_MAX_PENDING = 1024


class AverageMeter:
    """Records single numbers and returns their sum, mean, standard deviation and median.

    Takes 8 bytes a record. A tensor on a device is not read when it is recorded but when a statistic is asked for, or
    after 1,024 records. Statistics of no records are nan (the sum is 0).
    """

    def __init__(self) -> None:
        self._records = array("d")
        self._pending: list[torch.Tensor] = []

    def update(self, result: Any) -> None:
        """Record a number, a numpy scalar, or a tensor or array of one element."""
        if not isinstance(result, torch.Tensor):
            self._read_pending()
            self._records.append(float(np.asarray(result).reshape(())))
            return
        self._pending.append(result.detach().reshape(()).clone())
        if len(self._pending) >= _MAX_PENDING:
            self._read_pending()

    def reset(self) -> None:
        """Forget all records."""
        self._records = array("d")
        self._pending = []

    def get_records(self, last_n: int | None = None) -> np.ndarray:
        """Return the last n records (default: all) as float64; waits for the device if records are still there."""
        self._read_pending()
        records = np.array(self._records)
        return records if last_n is None else records[max(len(records) - last_n, 0) :]

    def sum(self, last_n: int | None = None) -> float:
        """Return the sum of the last n records."""
        return float(self.get_records(last_n).sum())

    def mean(self, last_n: int | None = None) -> float:
        """Return the mean of the last n records."""
        records = self.get_records(last_n)
        return float(records.mean()) if len(records) else float("nan")

    def std(self, last_n: int | None = None) -> float:
        """Return the standard deviation (of the population, as numpy's) of the last n records."""
        records = self.get_records(last_n)
        return float(records.std()) if len(records) else float("nan")

    def median(self, last_n: int | None = None) -> float:
        """Return the median of the last n records."""
        records = self.get_records(last_n)
        return float(np.median(records)) if len(records) else float("nan")

    def _read_pending(self) -> None:
        """Bring waiting tensors to the host in one copy for each device."""
        if self._pending:
            one_device = len({tensor.device for tensor in self._pending}) == 1
            block = torch.stack(self._pending if one_device else [tensor.cpu() for tensor in self._pending])
            self._records.extend(block.cpu().double().tolist())
            self._pending = []
