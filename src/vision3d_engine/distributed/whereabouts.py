"""Where a thread of this process is, seen from another thread; costs the one that is watched nothing."""

import sys
import sysconfig
from pathlib import Path
from types import FrameType, TracebackType
from typing import NamedTuple

import torch

# Code that waits for other processes, or for a device that waits for them, when it does not go on for long.
_WAITS = tuple(
    str(Path(folder) / part)
    for folder, parts in (
        (torch.__path__[0], ("distributed", "autograd", "_tensor.py", "nn/parallel")),
        (Path(__file__).parent.parent, ("distributed", "metrics", "loop/update.py")),
    )
    for part in parts
)
_LIBRARIES = (str(torch.__path__[0]), sysconfig.get_path("stdlib"), "<")


class Whereabouts(NamedTuple):
    """A line of code, such as ``train.py:41 in train_step``, and whether it may wait for other processes."""

    line: str
    is_waiting: bool


def find(thread: int) -> Whereabouts:
    """Return where a thread is: its innermost line outside torch and python's own library."""
    frame = sys._current_frames().get(thread)  # noqa: SLF001  the documented way to see another thread
    is_waiting = frame is not None and frame.f_code.co_filename.startswith(_WAITS)
    while frame is not None and _is_library(frame):
        frame = frame.f_back
    return Whereabouts(_describe(frame, frame.f_lineno) if frame is not None else "", is_waiting)


def line_of(traceback: TracebackType | None) -> str:
    """Return the innermost line outside torch and python's own library that an error has passed."""
    line = ""
    while traceback is not None:
        if not _is_library(traceback.tb_frame):
            line = _describe(traceback.tb_frame, traceback.tb_lineno)
        traceback = traceback.tb_next
    return line


def _is_library(frame: FrameType) -> bool:
    name = frame.f_code.co_filename
    return (name.startswith(_LIBRARIES) and not name.startswith(sysconfig.get_path("purelib"))) or name.startswith(
        str(torch.__path__[0])
    )


def _describe(frame: FrameType, line: int) -> str:
    return f"{Path(frame.f_code.co_filename).name}:{line} in {frame.f_code.co_name}"
