"""The numbers of a run: each set of values leaves once, to every writer."""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain, count
from pathlib import Path
from typing import Any, NamedTuple

from vision3d_engine.loggers.console import Logger
from vision3d_engine.loggers.jsonl import JsonLinesWriter
from vision3d_engine.loggers.outbox import Outbox


class EventBoard:
    """Writes sets of named numbers to TensorBoard (``phase/key``) and to ``metrics.jsonl``.

    The files are opened by the first write, so a run that writes nothing leaves nothing.

    Args:
        event_dir: folder of the TensorBoard events.
        jsonl_file: file of the JSON lines.
        enabled: False on all processes but the main one, where every call returns at once.
    """

    def __init__(self, event_dir: str | Path, jsonl_file: str | Path, enabled: bool = True) -> None:
        self._event_dir = event_dir
        self._jsonl_file = jsonl_file
        self._enabled = enabled
        self._started = time.time()
        self._tensorboard: Any = None
        self._jsonl: JsonLinesWriter | None = None
        self._purge_step: int | None = None
        self._outbox = Outbox(self._deliver)
        self._logger: Logger | None = None
        self._failed = False

    def speak_through(self, logger: Logger) -> None:
        """Let `write_line` go to a logger, whose other messages come after the lines before them."""
        self._logger = logger
        logger.before_message = self._outbox.flush

    def write(self, phase: str, values: Mapping[str, float], step: int, **position: Any) -> None:
        """Write numbers of one phase at one step; ``position`` (epoch, iteration, ...) goes into the JSON line.

        Costs a few microseconds: numbers are formatted and written by a thread, within a fifth of a second. They are
        those of now, whatever becomes of ``values``.
        """
        if self._enabled:
            self._outbox.put(_Note(time.time(), phase, dict(values), {"step": step, **position}, step))

    def write_row(self, phase: str, values: Mapping[str, float], **position: Any) -> None:
        """Write numbers as a JSON line only."""
        if self._enabled:
            self._outbox.put(_Note(time.time(), phase, dict(values), position))

    def write_line(self, make: Callable[[], str]) -> None:
        """Write a message of level INFO that is put together later, by the thread."""
        if self._enabled:
            self._outbox.put(_Line(time.time(), make))

    def write_points(self, tag: str, points: Any, colors: Any, step: int) -> None:
        """Write point clouds for TensorBoard's mesh tab."""
        if self._enabled:
            self._outbox.flush()
            with self._forgiving_disks():
                self._open_tensorboard().points(tag, points, colors, step)

    def _deliver(self, notes: list[Any]) -> None:
        """Write many notes at once."""
        lines = [(note.time, note.make()) for note in notes if isinstance(note, _Line)]
        if lines and self._logger is not None:
            self._logger.write_lines(lines)
        numbers = [note for note in notes if isinstance(note, _Note)]
        with self._forgiving_disks():
            self._write_rows(numbers)
        with self._forgiving_disks():
            self._write_events([note for note in numbers if note.step is not None])

    @contextmanager
    def _forgiving_disks(self) -> Iterator[None]:
        """Write; a disk that is full is said once, and costs numbers but not the run."""
        try:
            yield
        except OSError as error:
            if not self._failed and self._logger is not None:
                reason = error.strerror or error
                self._logger.log(f"cannot write numbers of the run: {reason}; they are lost", "ERROR")
            self._failed = True

    def _write_rows(self, notes: list["_Note"]) -> None:
        if not notes:
            return
        if self._jsonl is None:
            self._jsonl = JsonLinesWriter(self._jsonl_file)
        self._jsonl.rows(self._row(note) for note in notes)

    def _write_events(self, notes: list["_Note"]) -> None:
        if notes:
            self._open_tensorboard().scalars((note.time, note.phase, note.values, note.step or 0) for note in notes)

    def _row(self, note: "_Note") -> dict[str, Any]:
        time_s = round(note.time - self._started, 3)
        return {"phase": note.phase, **note.position, "time_s": time_s, "values": dict(note.values)}

    def start_anew(self) -> None:
        """Put the numbers of an earlier run in the same folder aside, under the time of their last change."""
        self._outbox.flush()
        for path, writer in ((Path(self._jsonl_file), self._jsonl), (Path(self._event_dir), self._tensorboard)):
            if self._enabled and writer is None and path.exists():
                stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(path.stat().st_mtime))
                path.rename(_free_name(path, stamp))

    def ends(self) -> dict[str, int]:
        """Return how far the files reach, for `go_on_from`."""
        self._outbox.flush()
        return {"metrics_bytes": _size(Path(self._jsonl_file))}

    def go_on_from(self, ends: Mapping[str, int], step: int) -> None:
        """Forget what was written after a checkpoint, since a resumed run writes it again: no curve goes back.

        Args:
            ends: what `ends` returned when the checkpoint was saved.
            step: training batches until then.
        """
        if not self._enabled:
            return
        self._outbox.flush()
        self._purge_step = step + 1
        path, end = Path(self._jsonl_file), ends.get("metrics_bytes")
        if end is not None and _size(path) > end:
            os.truncate(path, end)

    def flush(self) -> None:
        """Hand everything written so far to the operating system."""
        self._outbox.flush()

    def close(self) -> None:
        """Flush and close all files; a later write opens them again."""
        try:
            self._outbox.close()
        finally:
            writers, self._tensorboard, self._jsonl = (self._tensorboard, self._jsonl), None, None
            for writer in filter(None, writers):
                with self._forgiving_disks():
                    writer.close()

    def _open_tensorboard(self) -> Any:
        if self._tensorboard is None:
            from vision3d_engine.loggers.tensorboard import TensorBoardWriter

            self._tensorboard = TensorBoardWriter(self._event_dir, self._purge_step)
            self._purge_step = None
        return self._tensorboard


class _Note(NamedTuple):
    """Numbers that wait to be written; those without a step go to the JSON lines only."""

    time: float
    phase: str
    values: Mapping[str, float]
    position: Mapping[str, Any]
    step: int | None = None


class _Line(NamedTuple):
    """A message that waits to be put together."""

    time: float
    make: Callable[[], str]


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _free_name(path: Path, stamp: str) -> Path:
    """Return the path with a time in its name, which no other file has."""
    numbers = chain([""], (f"-{number}" for number in count(1)))
    names = (path.with_name(f"{path.stem}-{stamp}{number}{path.suffix}") for number in numbers)
    return next(name for name in names if not name.exists())
