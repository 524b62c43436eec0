"""What arguments of metrics may be; others are refused where a metric is made, or where it is updated."""

import math
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

import torch

from vision3d_engine.core.errors import ConfigError, ResultError
from vision3d_engine.core.tree import describe


def require(is_right: bool, metric: object, expected: str, **got: Any) -> None:
    """Refuse arguments with which a metric cannot be made.

    Raises:
        ConfigError: naming the metric, what it got and what it expected.
    """
    if not is_right:
        said = ", ".join(f"{name}={value!r}" for name, value in got.items())
        raise ConfigError(f"{type(metric).__name__} got {said}; expected {expected}")


def require_thresholds(metric: object, **got: Any) -> None:
    """Refuse thresholds that are no finite number from 0 on."""
    are_right = all(is_number(value) and math.isfinite(value) and value >= 0 for value in got.values())
    require(are_right, metric, "finite numbers from 0 on", **got)


def is_number(value: Any) -> bool:
    """Tell whether it is a real number, and no flag."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_whole(value: Any) -> bool:
    """Tell whether it is a whole number, and no flag."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def are_whole(values: Any) -> bool:
    """Tell whether it is something with whole numbers from 0 on, and not empty."""
    found = list(values) if isinstance(values, Iterable) else []
    return bool(found) and all(is_whole(each) and each >= 0 for each in found)


def as_tensor(value: Any) -> torch.Tensor:
    """Return what an update got as a tensor without gradients.

    Raises:
        ResultError: when it is none, and cannot be made one.
    """
    try:
        return torch.as_tensor(value).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        message = f"update of a metric got {describe(value)}; expected a tensor, an array or numbers, such as "
        raise ResultError(message + "output_dict['logits'] and data_dict['labels']") from error
