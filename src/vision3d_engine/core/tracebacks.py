"""What people see of the way of an error: the lines of their own code, the innermost last."""

import os
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from vision3d_engine.core.errors import EngineError, text_of

_ENGINE = str(Path(__file__).parents[1]) + os.sep
_INSTALLED = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
_TORCH = str(torch.__path__[0])
_LIBRARIES = (_ENGINE, _TORCH, *_INSTALLED)
_TYPED = ("<ipython", "<stdin")  # what people type; other names of this kind are of generated and frozen code
_BEGIN = "Traceback (most recent call last):\n"
# What torch makes of an error in a data worker, of which only text arrives.
_FROM_WORKER = re.compile(
    rf"Caught \w+ (in DataLoader worker process \d+)\.\nOriginal .*{re.escape(_BEGIN)}", re.DOTALL
)
_PLACE = re.compile(r'^ *File "(.*?)", line (\d+)', re.MULTILINE)
_FRAME = re.compile(r'  File "(.*?)", line \d+, in .*\n(?:   .*\n|  \[Previous .*\n)*')


def is_users(file: str) -> bool:
    """Tell whether a file is the user's own code: none of the engine, of python, or of an installed package."""
    return file.startswith(_TYPED) if file.startswith("<") else not file.startswith(_LIBRARIES)


def line_in(stack: str) -> str:
    """Return the innermost line of the user's own code in the text of a stack, such as ``train.py, line 3``.

    Empty where there is none.
    """
    own = [(file, number) for file, number in places_in(stack) if is_users(file)]
    return f"{own[-1][0]}, line {own[-1][1]}" if own else ""


def places_in(stack: str) -> list[tuple[str, int]]:
    """Return files and numbers of the lines that the text of a stack names, the innermost last."""
    return [(file, int(number)) for file, number in _PLACE.findall(stack)]


def users_part(traceback: TracebackType | None) -> TracebackType | None:
    """Return the entries of a traceback that lie in the user's own code; None when there is none."""
    short = None
    for entry in reversed(list(_entries(traceback))):
        if is_users(entry.tb_frame.f_code.co_filename):
            short = TracebackType(short, entry.tb_frame, entry.tb_lasti, entry.tb_lineno)
    return short


def shorten(error: BaseException) -> None:
    """Let an error, and those that have led to it, keep the entries of the user's own code only, in place.

    One that has none keeps all, since it may be the engine's fault; of the engine's own errors the message says it.
    """
    short, told = users_part(error.__traceback__), _FromWorker.find(error)
    if short is not None or told is not None or isinstance(error, EngineError):
        error.with_traceback(short)
    if told is not None:
        error.args = (type(error.args[0])(told.short), *error.args[1:])
    for led in _chain(error):
        led.with_traceback(users_part(led.__traceback__))
    if isinstance(error, EngineError) and all(led.__traceback__ is None for led in _chain(error)):
        error.__cause__ = None  # its message tells of it


def cause_of(error: BaseException) -> str:
    """Return kind and message of an error; of one from a data worker those that it had there."""
    told = _FromWorker.find(error)
    text = f"{type(error).__name__}: {text_of(error).strip()}" if told is None else told.cause
    return text.removesuffix(": ")


class ShortTracebacks:
    """Lets the errors that leave a block keep what `shorten` leaves of them.

    Args:
        is_on: whether to do so.
    """

    def __init__(self, is_on: bool) -> None:
        self._is_on = is_on

    def __enter__(self) -> None:
        """Nothing is to be opened."""

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        """Shorten an error; a generator of `contextlib` would give it its traceback back."""
        if self._is_on and isinstance(error, Exception):
            shorten(error)


class _FromWorker:
    """What torch tells of an error in a data worker.

    Attributes:
        cause: kind and message.
        short: the message, and the lines of the user's own code.
    """

    def __init__(self, kind: str, place: str, body: str) -> None:
        frames, end = [], 0
        while found := _FRAME.match(body, end):
            frames.append(found)
            end = found.end()
        name, colon, message = body[end:].strip().partition(": ")
        name = name.rpartition(".")[2]
        self.cause = f"{name}{colon}{message}"
        own = [found.group() for found in frames if is_users(found[1])] or [found.group() for found in frames]
        self.short = f"{message if name == kind else self.cause}\n{place}:\n{''.join(own).rstrip()}"

    @classmethod
    def find(cls, error: BaseException) -> "_FromWorker | None":
        """Return what is told of an error; None if it was raised in this process."""
        text: Any = error.args[0] if error.args and isinstance(error.args[0], str) else ""
        raised_in = [entry.tb_frame.f_code.co_filename for entry in _entries(error.__traceback__)][-1:]
        found = _FROM_WORKER.match(text) if "".join(raised_in).startswith(_TORCH) else None
        return None if found is None else cls(type(error).__name__, found[1], text[found.end() :])


def _entries(traceback: TracebackType | None) -> Iterator[TracebackType]:
    while traceback is not None:
        yield traceback
        traceback = traceback.tb_next


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield the errors that python prints before this one."""
    seen = {id(error)}
    while (led := error.__cause__ or (None if error.__suppress_context__ else error.__context__)) is not None:
        if id(led) in seen:
            return
        seen.add(id(led))
        yield led
        error = led
