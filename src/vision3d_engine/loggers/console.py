"""Messages for people: on the console and in a file, by loguru, without touching the host program's sinks."""

import sys
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vision3d_engine.core.files import GrowingFile, make_folder

_TIME = "%Y-%m-%d %H:%M:%S"
_LEVELS = ("TRACE", "DEBUG", "INFO", "SUCCESS", "WARNING", "ERROR", "CRITICAL")
_CONSOLE_FORMAT = "<green>{time:YYYY-MM-DD HH:mm:ss}</green> | <level>{level}</level> | <level><n>{message}</n></level>"
_FILE_FORMAT = "{time:YYYY-MM-DD HH:mm:ss} | {level} | {message}"


class _BarSafeConsole:
    """Standard error as it is at the time of each message, written so that a progress bar stays whole."""

    def write(self, text: str) -> None:
        tqdm.write(text, file=sys.stderr, end="")

    def flush(self) -> None:
        sys.stderr.flush()

    def isatty(self) -> bool:
        return sys.stderr.isatty()


class _LogFile:
    """A text file; a disk that is full is said once, and costs messages but not the run."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._file = GrowingFile(path)
        self._failed = False

    def write(self, text: str) -> None:
        try:
            self._file.add(text.encode(errors="backslashreplace"))
        except OSError as error:
            if not self._failed:
                reason = error.strerror or error
                tqdm.write(f"cannot write messages to '{self._path}': {reason}; they are lost there", file=sys.stderr)
            self._failed = True

    def stop(self) -> None:
        """Close the file; called by loguru."""
        self._file.close()


class Logger:
    """Writes messages to the console and, if named, to a file.

    It has a loguru core of its own: the host program's loguru sinks are neither removed nor written to.
    ``before_message`` is called before each message, so that what was said before stands before it.

    Args:
        log_file: text file to append to; its folder is made when missing.
        event_dir: folder for `write_event`; None writes no events.
        is_main: processes other than the main one speak only of errors, and write no other files than the next.
        error_file: text file for warnings and errors, made with the first of them.
    """

    def __init__(
        self,
        log_file: str | Path | None = None,
        event_dir: str | Path | None = None,
        is_main: bool = True,
        error_file: str | Path | None = None,
    ) -> None:
        self._loguru = _new_loguru()
        self.before_message: Callable[[], None] = _nothing
        weakref.finalize(self, self._loguru.remove)  # a logger that nobody closed closes its file all the same
        self._loguru.add(_BarSafeConsole(), format=_CONSOLE_FORMAT, level="INFO" if is_main else "ERROR")
        self._log_file = str(log_file) if log_file is not None and is_main else None
        self._event_dir = str(event_dir) if event_dir is not None and is_main else None
        self._events: Any = None
        if self._log_file is not None:
            make_folder(Path(self._log_file).parent)
            self._loguru.add(_LogFile(self._log_file), format=_FILE_FORMAT, level="DEBUG")
        if error_file is not None:
            self._loguru.add(error_file, format=_FILE_FORMAT, level="WARNING", encoding="utf-8", delay=True)

    @property
    def log_file(self) -> str | None:
        """Path of the text file."""
        return self._log_file

    @property
    def event_dir(self) -> str | None:
        """Folder of the TensorBoard events."""
        return self._event_dir

    def write_lines(self, lines: Sequence[tuple[float, str]]) -> None:
        """Write messages of the past, each with the time at which it came, all in one go."""
        if len(lines) == 1:
            when, message = lines[0]
            self._loguru.patch(lambda record: record.update(time=_at(when, record["time"]))).info("{}", message)
            return
        stamped = (f"{time.strftime(_TIME, time.localtime(when))} | INFO | {message}" for when, message in lines)
        self._loguru.opt(raw=True).info("{}\n", "\n".join(stamped))

    def log(self, message: Any, level: str = "INFO") -> None:
        """Write a message; an unknown level is written as INFO, and said."""
        self.before_message()
        level = str(level).upper()
        if level not in _LEVELS:
            self._loguru.warning("unknown log level '{}'; written as INFO (levels: {})", level, ", ".join(_LEVELS))
            level = "INFO"
        self._loguru.log(level, "{}", message)

    def debug(self, message: Any) -> None:
        """Write a message for developers."""
        self.log(message, "DEBUG")

    def info(self, message: Any) -> None:
        """Write an ordinary message."""
        self.log(message, "INFO")

    def success(self, message: Any) -> None:
        """Write a result."""
        self.log(message, "SUCCESS")

    def warn(self, message: Any) -> None:
        """Write a warning."""
        self.log(message, "WARNING")

    warning = warn

    def error(self, message: Any) -> None:
        """Write an error."""
        self.log(message, "ERROR")

    def critical(self, message: Any) -> None:
        """Write an error that ends the program."""
        self.log(message, "CRITICAL")

    def write_event(self, name: str, value: Any, index: int) -> None:
        """Write one number to TensorBoard; does nothing without an event folder."""
        if self._event_dir is None:
            return
        if self._events is None:
            from vision3d_engine.loggers.tensorboard import TensorBoardWriter

            self._events = TensorBoardWriter(self._event_dir)
        self._events.scalars([(time.time(), "", {name: float(value)}, index)])

    def close(self) -> None:
        """Write what is buffered and close the files; safe to call twice."""
        if self._events is not None:
            self._events.close()
            self._events = None
        self._loguru.remove()


def _at(when: float, like: Any) -> Any:
    """Return a time of the past as loguru's own kind of time, which its formats need."""
    return type(like).fromtimestamp(when, tz=like.tzinfo)


def _nothing() -> None:
    """Wait for nobody."""


def _new_loguru() -> Any:
    """Return a loguru logger with a core, and so with sinks, of its own.

    loguru documents no constructor; copying its global logger would copy the host's sinks along.
    """
    from loguru._logger import Core
    from loguru._logger import Logger as Loguru

    return Loguru(
        core=Core(),
        exception=None,
        depth=0,
        record=False,
        lazy=False,
        colors=False,
        raw=False,
        capture=False,
        patchers=[],
        extra={},
    )


_CURRENT: dict[str, Logger] = {}


def get_logger(log_file: str | Path | None = None, event_dir: str | Path | None = None) -> Logger:
    """Return the logger of the run that is open in this process, or a new one.

    A new one is made when none is open, or when ``log_file`` or ``event_dir`` asks for another place.
    """
    current = _CURRENT.get("logger")
    if current is None or (log_file is not None and str(log_file) != current.log_file):
        current = Logger(log_file, event_dir)
        set_logger(current)
    return current


def set_logger(logger: Logger | None) -> None:
    """Make a logger the one that `get_logger` returns; None forgets it."""
    _CURRENT.clear()
    if logger is not None:
        _CURRENT["logger"] = logger
