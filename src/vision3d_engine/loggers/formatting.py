"""How a line of numbers looks."""

from collections.abc import Mapping
from typing import Any

_SMALL, _TINY = 1e-3, 1e-6


def get_print_format(value: Any) -> str:
    """Return the format of one value: three decimals, more for small numbers, none for integers and text."""
    if isinstance(value, int | str) or not hasattr(value, "__float__"):
        return ""
    size = abs(float(value))
    if size == 0 or size >= _SMALL:
        return ".3f"
    return ".6f" if size >= _TINY else ".3e"


def get_format_strings(result_dict: Mapping[str, Any]) -> list[str]:
    """Return ``"key: value"`` for each entry; the value of a key ``"metadata"`` comes first, without its key."""
    head = [str(result_dict["metadata"])] if "metadata" in result_dict else []
    rest = {key: value for key, value in result_dict.items() if key != "metadata"}
    return head + [f"{key}: {value:{get_print_format(value)}}" for key, value in rest.items()]


def get_log_string(
    result_dict: Mapping[str, Any],
    epoch: int | None = None,
    max_epoch: int | None = None,
    iteration: int | None = None,
    max_iteration: int | None = None,
    lr: float | None = None,
    time_dict: Mapping[str, float] | None = None,
) -> str:
    """Return ``epoch: 1/300, iter: 10/3000, loss: 2.217, lr: 1.030e-03, time: 0.146s/0.499s``, without absent parts."""
    parts = [*_position("epoch", epoch, max_epoch), *_position("iter", iteration, max_iteration)]
    parts += get_format_strings(result_dict)
    if lr is not None:
        parts.append(f"lr: {lr:.3e}")
    if time_dict is not None:
        parts.append("time: " + "/".join(f"{seconds:.3f}s" for seconds in time_dict.values()))
    return ", ".join(parts)


def _position(name: str, value: int | None, maximum: int | None) -> list[str]:
    if value is None:
        return []
    return [f"{name}: {value}" if maximum is None else f"{name}: {value}/{maximum}"]
