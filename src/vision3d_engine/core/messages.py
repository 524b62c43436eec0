"""Messages of what knows no run: they go to the log of the one that is open in this process, else to the console."""

import sys
from collections.abc import Callable

_Say = Callable[[str, str], None]


def _to_console(message: str, level: str) -> None:
    sys.stderr.write(f"{level}: {message}\n")


_SAY: list[_Say] = []


def say(message: str, level: str = "INFO") -> None:
    """Say a message with its level."""
    (_SAY or [_to_console])[-1](message, level)


def say_by(taker: _Say | None) -> None:
    """Let messages be taken by a function; None for the console."""
    _SAY[:] = [] if taker is None else [taker]
