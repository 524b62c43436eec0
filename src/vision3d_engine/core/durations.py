"""Times and cadences as people write them: "10 min", "1-12:00:00", "500 iterations"."""

import re
from typing import NamedTuple

_SECONDS = {"s": 1, "sec": 1, "second": 1, "min": 60, "minute": 60, "h": 3600, "hour": 3600, "d": 86400, "day": 86400}
_COUNTED = {"epoch": "epoch", "iteration": "iteration", "iter": "iteration", "step": "iteration"}
_CLOCK = re.compile(r"(?:(\d+)-)?(\d+):(\d{1,2})(?::(\d{1,2}))?")
_TIMES = "such as '90 s', '10 min', '11.5 h', '2 d', 'HH:MM:SS' or 'D-HH:MM:SS'"


class Cadence(NamedTuple):
    """How often something happens: every ``number`` of a unit, ``"epoch"``, ``"iteration"`` or ``"second"``."""

    number: float
    unit: str


def parse_duration(text: str) -> float:
    """Return a duration in seconds.

    Raises:
        ValueError: when the text is no duration; it says what is.
    """
    if clock := _CLOCK.fullmatch(text.strip()):
        days, hours, minutes, seconds = (int(part or 0) for part in clock.groups())
        return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
    count, unit = _number_and_unit(text)
    if unit not in _SECONDS or count <= 0:
        message = f"it must be a duration {_TIMES}"
        raise ValueError(message)
    return count * _SECONDS[unit]


def parse_cadence(text: str) -> Cadence:
    """Return how often.

    Raises:
        ValueError: when the text is no cadence; it says what is.
    """
    count, unit = _number_and_unit(text)
    if unit in _COUNTED and count >= 1 and count == int(count):
        return Cadence(int(count), _COUNTED[unit])
    if unit in _SECONDS and count:
        return Cadence(count * _SECONDS[unit], "second")
    message = "it must be a cadence such as '1 epoch', '500 iterations' or '10 min'"
    raise ValueError(message)


def parse_val_cadence(text: str) -> Cadence | None:
    """Return how often a run is validated, counted in epochs or iterations; None for never.

    Raises:
        ValueError: when the text says neither; no clock is asked, since a run could not be repeated by it.
    """
    if text.strip().lower() == "never":
        return None
    count, unit = _number_and_unit(text)
    if unit not in _COUNTED or count < 1 or count != int(count):
        message = "it must be counted in epochs or iterations, such as '1 epoch' or '500 iterations', or be 'never'"
        raise ValueError(message)
    return Cadence(int(count), _COUNTED[unit])


def parse_window(text: str) -> range:
    """Return training batches, counted from 1 since the start of the run: ``"10:20"`` is 10 up to 19.

    Raises:
        ValueError: when the text is no such window; it says what is.
    """
    match = re.fullmatch(r"\s*(\d+)\s*:\s*(\d+)\s*", text)
    window = range(*map(int, match.groups())) if match else range(0)
    if not window or window.start == 0:
        raise ValueError("it must be FIRST:END, such as '10:20' for the steps 10 to 19, where the first step is 1")
    return window


def parse_iterations(text: str) -> int:
    """Return a number of training batches.

    Raises:
        ValueError: when the text is none; it says what is.
    """
    count, unit = _number_and_unit(text)
    if unit != "iteration" or count < 1 or count != int(count):
        raise ValueError("it must be a number of training batches, such as '100 iterations'")
    return int(count)


def _number_and_unit(text: str) -> tuple[float, str]:
    """Split ``"500 iterations"`` into 500 and ``"iteration"``; 0 and no unit when it is of another form."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)?\s*([A-Za-z]+)\s*", text)
    if match is None:
        return 0.0, ""
    unit = match.group(2).lower()
    return float(match.group(1) or 1), unit if unit in _SECONDS else unit.removesuffix("s")
