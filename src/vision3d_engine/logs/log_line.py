"""The text of log lines, all of it."""

from collections.abc import Mapping
from typing import Any

import torch

_SMALL, _TINY = 1e-3, 1e-6
_SHOWN = 0.005  # half a percent
# From here on three digits would be written with an exponent.
_LARGE = 999.5


def train_line(  # noqa: PLR0913  all that a line tells
    means: Mapping[str, Any],
    interval: Any,
    position: Mapping[str, Any],
    *,
    max_epoch: int | None,
    max_iteration: int | None,
    steps_left: int | None,
    samples_per_step: int | None,
    device: torch.device,
) -> str:
    """Return a line of training, from what is handed in: the thread that writes it is behind the run.

    Args:
        means: the numbers, by name.
        interval: what was measured since the last line: ``rate``, steps per second, and ``times()``, seconds by name.
        position: ``epoch``, ``iteration`` and ``lr``.
        max_epoch: epochs to train; None when updates are counted instead.
        max_iteration: steps of an epoch; None when not known.
        steps_left: steps until the end of the run; None when not known.
        samples_per_step: samples of one step of all processes; None when not known.
        device: its peak memory is told.
    """
    epoch, iteration = position["epoch"], position["iteration"]
    times = interval.times()
    line = get_log_string(means, epoch, max_epoch, iteration, max_iteration, lr=position["lr"], time_dict=times)
    return f"{line}, {throughput_text(interval.rate, steps_left, samples_per_step, device)}"


def time_line(seconds: float, shares: Mapping[str, float], epoch: int, max_epoch: int | None) -> str:
    """Return ``epoch: 2/10, 61.3s: data 3%, forward 40%, ...``, without parts that are nothing.

    Args:
        seconds: time of an epoch.
        shares: what it went into.
        epoch: its number.
        max_epoch: epochs to train; None when updates are counted instead.
    """
    parts = [f"{name} {share:.0%}" for name, share in shares.items() if share >= _SHOWN]
    return f"[Time] {get_log_string({}, epoch, max_epoch)}, {seconds:.1f}s: {', '.join(parts)}"


def endpoint_lines(
    position: Mapping[str, int], shapes: Mapping[str, tuple[int, ...]], figures: Mapping[str, Mapping[str, float]]
) -> str:
    """Return a line for each captured tensor, and one above them.

    Args:
        position: ``epoch`` and ``iteration`` of the captured step.
        shapes: of the tensors, by name.
        figures: ``mean``, ``std``, ``zeros`` and ``nonfinite`` by name; of gradients under ``NAME/grad``.
    """
    lines = [f"endpoints of {get_log_string({}, position['epoch'], None, position['iteration'])}"]
    for name, shape in shapes.items():
        parts = [f"  {name} {shape}: {_figures(figures[name])}"]
        if (gradient := figures.get(f"{name}/grad")) is not None:
            parts.append(f"gradient: {_figures(gradient)}")
        lines.append("; ".join(parts))
    return "\n".join(lines)


def _figures(found: Mapping[str, float]) -> str:
    text = f"mean {found['mean']:.3g}, std {found['std']:.3g}, zeros {found['zeros']:.1%}"
    return f"{text}, not finite {found['nonfinite']:.0f}" if found["nonfinite"] else text


def throughput_text(rate: float, steps_left: int | None, samples_per_step: int | None, device: torch.device) -> str:
    """Return ``3.2 it/s, 26 samples/s, eta 1:02:03, 4.1 GB`` without what is not known.

    Args:
        rate: steps per second.
        steps_left: steps until the end of the run; None when not known.
        samples_per_step: samples of one step of all processes; None when not known.
        device: its peak memory since the start is told, if it is an accelerator that counts it.
    """
    parts = [f"{_number(rate)} it/s"]
    if samples_per_step is not None:
        parts.append(f"{_number(rate * samples_per_step)} samples/s")
    if steps_left is not None:
        parts.append(f"eta {clock_text(steps_left / rate)}")
    if device.type == "cuda":
        parts.append(f"{torch.cuda.max_memory_allocated(device) / 2**30:.1f} GB")
    return ", ".join(parts)


def _number(value: float) -> str:
    """Return three digits, or all those before the point: ``0.0123``, ``3.2``, ``12,345``."""
    return f"{value:.3g}" if value < _LARGE else f"{value:,.0f}"


def clock_text(seconds: float) -> str:
    """Return ``1:02:03``, or ``2 d 1:02:03``."""
    days, rest = divmod(round(seconds), 86400)
    hours, rest = divmod(rest, 3600)
    text = f"{hours}:{rest // 60:02d}:{rest % 60:02d}"
    return f"{days} d {text}" if days else text


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
