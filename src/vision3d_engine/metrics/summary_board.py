"""A set of meters by name."""

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from vision3d_engine.core.errors import ResultError, did_you_mean, listed
from vision3d_engine.metrics.average_meter import AverageMeter


class SummaryBoard:
    """Named `AverageMeter` objects that are updated and summed up together.

    Args:
        keys: names to make meters for.
        auto_register: make a meter for a new name on its first update, instead of warning.
    """

    def __init__(self, keys: Iterable[str] | None = None, auto_register: bool = False) -> None:
        self.meter_dict: dict[str, AverageMeter] = {}
        self.auto_register = auto_register
        self.register_all(keys or ())

    def register_meter(self, key: str) -> None:
        """Make a meter; a second one of the same name is a `ResultError`."""
        if key in self.meter_dict:
            message = f"the SummaryBoard already has a meter '{key}'; call reset_meter('{key}') to start it anew"
            raise ResultError(message)
        self.meter_dict[key] = AverageMeter()

    def register_all(self, keys: Iterable[str]) -> None:
        """Make a meter for each name."""
        for key in keys:
            self.register_meter(key)

    def reset_meter(self, key: str) -> None:
        """Forget the records of a meter; an unknown name is ignored."""
        if key in self.meter_dict:
            self.meter_dict[key].reset()

    def reset_all(self) -> None:
        """Forget the records of all meters."""
        for meter in self.meter_dict.values():
            meter.reset()

    def update(self, key: str, value: Any) -> None:
        """Record one number; without a meter for it the number is skipped with a warning."""
        if key not in self.meter_dict and self.auto_register:
            self.register_meter(key)
        if key in self.meter_dict:
            self.meter_dict[key].update(value)
        else:
            warnings.warn(f"no meter '{key}' in the SummaryBoard; the value was skipped", stacklevel=2)

    def update_from_dict(self, metric_dict: Mapping[str, Any]) -> None:
        """Record every number of a dict."""
        for key, value in metric_dict.items():
            self.update(key, value)

    def sum(self, key: str, last_n: int | None = None) -> float:
        """Return the sum of the last n records of a meter."""
        return self._meter(key).sum(last_n)

    def mean(self, key: str, last_n: int | None = None) -> float:
        """Return the mean of the last n records of a meter; nan when it has none."""
        return self._meter(key).mean(last_n)

    def std(self, key: str, last_n: int | None = None) -> float:
        """Return the standard deviation of the last n records of a meter."""
        return self._meter(key).std(last_n)

    def median(self, key: str, last_n: int | None = None) -> float:
        """Return the median of the last n records of a meter."""
        return self._meter(key).median(last_n)

    def summary(self, keys: Iterable[str] | None = None, last_n: int | None = None) -> dict[str, float]:
        """Return the means of the last n records by name."""
        return {key: self.mean(key, last_n) for key in (self.meter_dict if keys is None else keys)}

    def tostring(self, keys: Iterable[str] | None = None, last_n: int | None = None) -> str:
        """Return the means as ``"loss: 0.512, accuracy: 0.873"``."""
        return ", ".join(f"{key}: {value:.3f}" for key, value in self.summary(keys, last_n).items())

    def _meter(self, key: str) -> AverageMeter:
        if key not in self.meter_dict:
            hint = did_you_mean(key, self.meter_dict)
            message = f"no meter '{key}' in the SummaryBoard{hint} (meters: {listed(self.meter_dict)})"
            raise ResultError(message)
        return self.meter_dict[key]
