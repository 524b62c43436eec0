"""Which line a thread of this process is in, seen from another thread; costs the one that is looked at nothing."""

import faulthandler
import re
import sysconfig
import tempfile
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import torch

_TORCH, _INSTALLED = str(torch.__path__[0]), sysconfig.get_path("purelib")
# Code that waits for other processes, or for a device that waits for them, when it does not go on for long.
_WAITS = (
    *(f"{_TORCH}/{part}" for part in ("distributed", "autograd", "_tensor.py", "nn/parallel")),
    *(str(Path(__file__).parents[2] / part) for part in ("distributed", "metrics", "update")),
)
_LIBRARIES = (_TORCH, sysconfig.get_path("stdlib"), "<")
_LINE = re.compile(r'  File "(.*)", line (\d+) in (.*)')


class StackLocation(NamedTuple):
    """A line of code, such as ``train.py:41 in train_step``, and whether it may wait for other processes."""

    line: str
    is_waiting: bool


def find_location(thread: int) -> StackLocation:
    """Return where a thread is: its innermost line outside torch and python's own library.

    ``sys._current_frames`` would take a lock of the interpreter, with which a fork of data workers must not collide;
    what faulthandler writes takes none. Costs about a millisecond.
    """
    with tempfile.TemporaryFile() as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        text = file.read().decode(errors="replace")
    stack = _LINE.findall(text.partition(f"hread 0x{thread:016x} ")[2].partition("\n\n")[0])
    is_waiting = bool(stack) and stack[0][0].startswith(_WAITS)
    lines = (_describe(*line) for line in stack if not _is_library(line[0]))
    return StackLocation(next(lines, ""), is_waiting)


def line_of(traceback: TracebackType | None) -> str:
    """Return the innermost line outside torch and python's own library that an error has passed."""
    line = ""
    while traceback is not None:
        code = traceback.tb_frame.f_code
        if not _is_library(code.co_filename):
            line = _describe(code.co_filename, traceback.tb_lineno, code.co_name)
        traceback = traceback.tb_next
    return line


def _is_library(file: str) -> bool:
    is_installed = file.startswith(_INSTALLED) and not file.startswith(_TORCH)
    return file.startswith(_LIBRARIES) and not is_installed


def _describe(file: str, line: int | str, function: str) -> str:
    return f"{Path(file).name}:{line} in {function}"
