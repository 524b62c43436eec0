"""What a log line says about speed: steps per second, samples per second, time left, memory of the device."""

import torch

from vision3d_engine.metrics.step_clock import LogInterval

# From here on three digits would be written with an exponent.
_LARGE = 999.5


def describe_pace(
    window: LogInterval, steps_left: int | None, samples_per_step: int | None, device: torch.device
) -> str:
    """Return ``3.2 it/s, 26 samples/s, eta 1:02:03, 4.1 GB`` without what is not known.

    Args:
        window: times since the last log line.
        steps_left: steps until the end of the run; None when not known.
        samples_per_step: samples of one step of all processes; None when not known.
        device: its peak memory since the start is told, if it is an accelerator that counts it.
    """
    parts = [f"{_number(window.rate)} it/s"]
    if samples_per_step is not None:
        parts.append(f"{_number(window.rate * samples_per_step)} samples/s")
    if steps_left is not None:
        parts.append(f"eta {_clock(steps_left / window.rate)}")
    if device.type == "cuda":
        parts.append(f"{torch.cuda.max_memory_allocated(device) / 2**30:.1f} GB")
    return ", ".join(parts)


def _number(value: float) -> str:
    """Return three digits, or all those before the point: ``0.0123``, ``3.2``, ``12,345``."""
    return f"{value:.3g}" if value < _LARGE else f"{value:,.0f}"


def _clock(seconds: float) -> str:
    """Return ``1:02:03``, or ``2 d 1:02:03``."""
    days, rest = divmod(round(seconds), 86400)
    hours, rest = divmod(rest, 3600)
    text = f"{hours}:{rest // 60:02d}:{rest % 60:02d}"
    return f"{days} d {text}" if days else text
