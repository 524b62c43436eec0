"""Messages for people, on the console and in a file, by parts of the standard library's logging.

No logger of `logging` is made or changed: the host program's handlers are neither removed nor written to.
"""

import contextlib
import logging
import os
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from functools import partial, partialmethod
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vision3d_engine.core.background import BackgroundListener
from vision3d_engine.core.errors import without_escapes
from vision3d_engine.core.files import GrowingFile, absolute_path, make_folder
from vision3d_engine.core.messages import say_by

_LEVELS = {"TRACE": 5, "DEBUG": 10, "INFO": 20, "SUCCESS": 25, "WARNING": 30, "ERROR": 40, "CRITICAL": 50}
_COLORS = {"TRACE": 36, "DEBUG": 34, "INFO": 0, "SUCCESS": 32, "WARNING": 33, "ERROR": 31, "CRITICAL": 41}  # of ANSI
_TIME = "%Y-%m-%d %H:%M:%S"
_PLAIN = logging.Formatter("%(asctime)s | %(levelname)s | %(message)s", _TIME)
_COLORED = {
    level: logging.Formatter(
        f"\033[32m%(asctime)s\033[0m | \033[1;{color}m%(levelname)s\033[0m | \033[{color}m%(message)s\033[0m", _TIME
    )
    for level, color in _COLORS.items()
}

# Held while text is written, and while this process is forked: a child must not begin with half a line, nor with a lock
# of tqdm's that a thread of its parent holds.
_WRITING = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_WRITING.acquire, after_in_parent=_WRITING.release, after_in_child=_WRITING.release)


class _Record(logging.LogRecord):
    """A message of now, as text or as a function that returns it later. `logging` knows neither TRACE nor SUCCESS."""

    def __init__(self, message: str | Callable[[], str], level: str) -> None:
        super().__init__("vision3d_engine", _LEVELS[level], "", 0, message, None, None)
        self.levelname = level
        self.line = ""

    def put_together(self) -> None:
        """Make the line of it, for files and pipes."""
        if callable(self.msg):
            try:
                self.msg = self.msg()
            except Exception as error:  # noqa: BLE001  costs a line, not the run
                self.msg = f"a log line could not be put together: {error!r}"
        self.line = without_escapes(_PLAIN.format(self)) + "\n"


class _Console:
    """Standard error as it is at the time of each message, written so that a progress bar stays whole."""

    def __init__(self, level: str) -> None:
        self.level = _LEVELS[level]

    def write(self, records: Sequence[_Record]) -> None:
        """Write many lines at once, on a terminal in colours."""
        with contextlib.suppress(OSError, ValueError):  # nobody listens there any more
            has_colors = sys.stderr.isatty()
            lines = (f"{_COLORED[one.levelname].format(one)}\n" if has_colors else one.line for one in records)
            tqdm.write("".join(lines), file=sys.stderr, end="")

    def close(self) -> None:
        """Nothing is to be closed."""


class _LogFile:
    """A text file, made with the first message; a full disk is said once, and costs messages but not the run."""

    def __init__(self, path: str | Path, level: str) -> None:
        self.level = _LEVELS[level]
        self._file = GrowingFile(path)
        self._failed = False

    def write(self, records: Sequence[_Record]) -> None:
        """Write many lines at once."""
        try:
            self._file.add("".join(one.line for one in records).encode(errors="backslashreplace"))
        except OSError as error:
            if not self._failed:
                lost = f"{error.strerror or error}; they are lost there"
                tqdm.write(f"cannot write messages to '{self._file.path}': {lost}", file=sys.stderr)
            self._failed = True

    def close(self) -> None:
        """Close the file; a later message opens it again."""
        self._file.close()


class Logger:
    """Writes messages to the console and, if named, to a file.

    Args:
        log_file: text file to append to; its folder is made when missing.
        event_dir: folder for `write_event`; None writes no events.
        is_main: processes other than the main one speak only of errors, and write no other files than the next.
        error_file: text file for warnings and errors, made with the first of them.

    Attributes:
        warnings: how many warnings and errors there were.
    """

    def __init__(
        self,
        log_file: str | Path | None = None,
        event_dir: str | Path | None = None,
        is_main: bool = True,
        error_file: str | Path | None = None,
    ) -> None:
        self.is_main = is_main
        self.warnings = 0
        self.log_file = str(absolute_path(log_file)) if log_file is not None and is_main else None
        self.event_dir = str(absolute_path(event_dir)) if event_dir is not None and is_main else None
        self._places: list[_Console | _LogFile] = [_Console("INFO" if is_main else "ERROR")]
        if self.log_file is not None:
            make_folder(Path(self.log_file).parent)
            self._places.append(_LogFile(self.log_file, "DEBUG"))
        if error_file is not None:
            self._places.append(_LogFile(error_file, "WARNING"))
        self._listener = BackgroundListener(partial(_write, self._places))
        self._events: list[Any] = []
        weakref.finalize(self, _close, self._listener, self._places, self._events)  # for a logger that nobody closes

    def log(self, message: Any, level: str = "INFO") -> None:
        """Write a message, after all lines before it; an unknown level is written as INFO, and said."""
        level = str(level).upper()
        if level not in _LEVELS:
            self.warn(f"unknown log level '{level}'; written as INFO (levels: {', '.join(_LEVELS)})")
            level = "INFO"
        self.warnings += _LEVELS[level] >= _LEVELS["WARNING"]
        self._listener.flush()
        _write(self._places, [_Record(str(message), level)])

    def line(self, make: Callable[[], str]) -> None:
        """Write a message of level INFO that is put together later, by a thread, with the time of now.

        Costs a few microseconds. It is written within a fifth of a second, before the next message of `log` and by
        `flush`.
        """
        if self.is_main:
            self._listener.put(_Record(make, "INFO"))

    debug = partialmethod(log, level="DEBUG")
    info = partialmethod(log, level="INFO")
    success = partialmethod(log, level="SUCCESS")
    warn = warning = partialmethod(log, level="WARNING")
    error = partialmethod(log, level="ERROR")
    critical = partialmethod(log, level="CRITICAL")

    def write_event(self, name: str, value: Any, index: int) -> None:
        """Write one number to TensorBoard; does nothing without an event folder, or in a forked process."""
        if self.event_dir is None or self._listener.is_inherited:
            return
        if not self._events:
            from torch.utils.tensorboard.writer import SummaryWriter

            self._events.append(SummaryWriter(self.event_dir, flush_secs=5))
        self._events[0].add_scalar(name, float(value), index)

    def flush(self) -> None:
        """Write all lines that wait."""
        self._listener.flush()

    def close(self) -> None:
        """Write what waits and close the files; a later message opens them again."""
        _close(self._listener, self._places, self._events)


def _write(places: Sequence[_Console | _LogFile], records: Sequence[_Record]) -> None:
    """Write messages, in each place all of them in one go."""
    for record in records:
        record.put_together()
    with _WRITING:
        for place in places:
            if heard := [record for record in records if record.levelno >= place.level]:
                place.write(heard)


def _close(listener: BackgroundListener, places: Sequence[_Console | _LogFile], events: list[Any]) -> None:
    listener.flush()
    for closable in (*places, *(() if listener.is_inherited else events)):
        closable.close()
    events.clear()


_CURRENT: dict[str, Logger] = {}


def get_logger(log_file: str | Path | None = None, event_dir: str | Path | None = None) -> Logger:
    """Return the logger of the run that is open in this process, or a new one.

    A new one is made when none is open, or when ``log_file`` or ``event_dir`` asks for another place; what is not asked
    for stays as it was. Processes other than the main one write no such files, and keep their logger.
    """
    current = _CURRENT.get("logger")
    if current is not None and current.is_main:
        log_file = current.log_file if log_file is None else str(absolute_path(log_file))
        event_dir = current.event_dir if event_dir is None else str(absolute_path(event_dir))
    if current is None or (current.is_main and (log_file, event_dir) != (current.log_file, current.event_dir)):
        set_logger(Logger(log_file, event_dir))
    return _CURRENT["logger"]


def set_logger(logger: Logger | None) -> None:
    """Make a logger the one that `get_logger` returns; None forgets it."""
    _CURRENT.clear()
    say_by(None if logger is None else logger.log)
    if logger is not None:
        _CURRENT["logger"] = logger
