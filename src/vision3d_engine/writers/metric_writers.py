"""The numbers of a run: each set of values is handed in once, and goes to every writer."""

import copy
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial, partialmethod
from itertools import chain, count
from pathlib import Path
from typing import Any

import torch

from vision3d_engine.core.background import BackgroundListener
from vision3d_engine.core.errors import RegistrationError, text_of
from vision3d_engine.core.tree import describe, map_leaves
from vision3d_engine.writers.files import FilesWriter
from vision3d_engine.writers.jsonl import JsonLinesWriter
from vision3d_engine.writers.protocol import MetricWriter
from vision3d_engine.writers.step_values import StepValuesWriter
from vision3d_engine.writers.tensorboard import TensorBoardWriter

_ON_DISK = dict.fromkeys(("metrics_bytes", "events", "steps"), "numbers of the run") | {"files": "files of the run"}
_MOST_WAITING = 16  # calls with clouds, images and the like, which may be large
_Call = tuple[str, tuple[Any, ...], dict[str, Any]]  # a method of the writers, and with what to call it


class MetricWriters:
    """Writes named numbers to TensorBoard (``phase/key``), to ``metrics.jsonl`` and to the writers of the user.

    Files open with the first number, so a run that writes nothing leaves nothing. Until a run begins, numbers are held
    in memory, since only then it is known whether it goes on with what lies in the folder; a script that never runs has
    them written at its end. What a forked process, such as a data worker, hands in is dropped.

    Args:
        event_dir: folder of the TensorBoard events.
        jsonl_file: file of the JSON lines.
        logger: is told of what fails; has ``log`` and ``flush``.
        enabled: False on all processes but the main one, where every call returns at once.
        files: writes clouds, images and the like as files too; None for nobody.
        steps: writes what single steps have returned; None for nobody.
    """

    def __init__(
        self,
        event_dir: str | Path,
        jsonl_file: str | Path,
        logger: Any,
        enabled: bool = True,
        files: FilesWriter | None = None,
        steps: StepValuesWriter | None = None,
    ) -> None:
        own = {"metrics_bytes": JsonLinesWriter(jsonl_file), "events": TensorBoardWriter(event_dir)}
        further = {"files": files, "steps": steps}
        self._own = own | {name: writer for name, writer in further.items() if writer is not None}
        self._logger = logger
        self._enabled = enabled
        self._delivery = _Delivery({**self._own}, logger)
        self._listener = BackgroundListener(self._delivery.deliver)
        self._held: list[_Call] = []
        self._is_holding = True
        self._is_owner = False
        self._asked: Callable[[], None] | None = None
        weakref.finalize(self, _finish, self._held, self._listener, self._delivery)

    def add(self, writer: MetricWriter) -> None:
        """Let a writer of the user have all that is written from now on.

        Raises:
            RegistrationError: when it is not a `MetricWriter`.
        """
        if not isinstance(writer, MetricWriter):
            message = f"add_writer got {describe(writer)}; it must be a subclass of vision3d_engine.MetricWriter"
            raise RegistrationError(message)
        known, name = self._delivery.writers, type(writer).__name__
        names = chain([name], (f"{name}#{number}" for number in count(2)))
        known[next(name for name in names if name not in known)] = writer

    # ------------------------------------------------------------------------------------------- writing

    def scalars(self, phase: str, values: Mapping[str, float], step: int, **position: Any) -> None:
        """Write numbers of one phase at one step; ``position`` (epoch, iteration, ...) goes into the JSON line.

        Costs a few microseconds: numbers are formatted and written by a thread, within a fifth of a second. They are
        those of now, whatever becomes of ``values``.
        """
        self._hand_in("scalars", phase, dict(values), step, position, time.time())

    def row(self, phase: str, values: Mapping[str, float], **position: Any) -> None:
        """Write numbers as a JSON line only."""
        self._hand_in("row", phase, dict(values), position, time.time())

    def step_values(self, *values: Any) -> None:
        """Write what single training steps have returned, as `MetricWriter` describes it."""
        self._hand_in("step_values", *values)

    def _write_data(self, name: str, *args: Any, **options: Any) -> None:
        """Call a method of all writers as `MetricWriter` describes it, in the thread, with the data as it is now.

        Who hands in more than the thread can write waits for it, so that memory stays flat.
        """
        if self.is_here:
            self._hand_in(name, *map_leaves(_copied, args), **map_leaves(_copied, options))
            if self._listener.waiting > _MOST_WAITING:
                self._listener.flush()

    points = partialmethod(_write_data, "points")
    lines = partialmethod(_write_data, "lines")
    images = partialmethod(_write_data, "images")
    histograms = partialmethod(_write_data, "histograms")
    text = partialmethod(_write_data, "text")

    def figures(self, tag: str, figure: Any, step: int) -> None:
        """Write a figure of matplotlib; returns when it is drawn, since a figure cannot be copied."""
        if self.is_here:
            self._hand_in("figures", tag, figure, step)
            self._listener.flush()

    def _hand_in(self, name: str, *args: Any, **options: Any) -> None:
        if not self.is_here:
            return
        if self._is_holding:
            self._held.append((name, args, options))
        else:
            self._release()
            self._listener.put((name, args, options))

    @property
    def is_here(self) -> bool:
        """Whether what is handed in is written: on the main process, but not in its data workers."""
        return self._enabled and not self._listener.is_inherited

    def _release(self) -> None:
        """Send off what was held until the run began."""
        for call in self._held:
            self._listener.put(call)
        self._held.clear()

    # ------------------------------------------------------------------------------------------- a run

    @contextmanager
    def running(self) -> Iterator[None]:
        """Write what comes while a block runs, and close all files behind it, on errors too.

        What was held is written before the first number of the block. If an error comes earlier the run was refused,
        and it is dropped: the folder may be that of another run.
        """
        self._is_holding = False
        try:
            yield
        except BaseException:
            self._held.clear()
            raise
        finally:
            self._is_owner = False
            self.close()

    def take_over(self) -> None:
        """Own the files until the block of `running` ends: do now what `start_anew` or `cut_back` has asked for.

        To be called by who holds the lock of the folder. Whoever else looks into it may not change what is there.
        """
        self._is_owner = True
        self._as_owner(self._asked)

    def _as_owner(self, act: Callable[[], None] | None) -> None:
        """Change what is in the files now, or when the run takes them over; only the last request counts."""
        self._asked = None if self._is_owner else act
        if self._is_owner and self.is_here and act is not None:
            self._listener.flush()
            act()

    def start_anew(self) -> None:
        """Put the numbers of an earlier run in the same folder aside, under the time of their last change."""
        self._as_owner(self._put_aside)

    def _put_aside(self) -> None:
        for writer in self._own.values():
            if not writer.is_open and writer.path.exists():
                stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(writer.path.stat().st_mtime))
                writer.path.rename(_free_name(writer.path, stamp))

    def positions(self) -> dict[str, Any]:
        """Return how far each writer has come, as plain data for `cut_back`; all until now is written before."""
        if not self.is_here:
            return {}
        self.flush()
        found = ((name, self._delivery.attempt(name, "position")) for name in self._delivery.writers)
        return {name: position for name, position in found if position is not None}

    def cut_back(self, positions: Mapping[str, Any], step: int) -> None:
        """Forget what was written after a checkpoint, since a resumed run writes it again: no curve goes back.

        What was held is dropped: the run that is resumed has written it. Files are cut by `take_over`, if that has not
        been called.

        Args:
            positions: what `positions` returned when the checkpoint was saved.
            step: training batches until then.
        """
        self._held.clear()
        self._as_owner(partial(self._cut, positions, step))

    def _cut(self, positions: Mapping[str, Any], step: int) -> None:
        for name in self._delivery.writers:
            self._delivery.attempt(name, "cut_back", positions.get(name), step)

    def flush(self) -> None:
        """Write the log lines and numbers of the run until now."""
        self._logger.flush()
        if self.is_here:
            if not self._is_holding:
                self._release()
            self._listener.flush()

    def close(self) -> None:
        """Write all there is and close all files; a later number opens them again."""
        self._is_holding = False
        self.flush()
        if self.is_here:
            self._delivery.close()


class _Delivery:
    """Calls all writers, one call at a time; one that fails costs its own numbers.

    Args:
        writers: by their names in a checkpoint.
        logger: is told of what fails.
    """

    def __init__(self, writers: dict[str, MetricWriter], logger: Any) -> None:
        self.writers = writers
        self._logger = logger
        self._failed: set[str] = set()
        self._lock = threading.RLock()

    def deliver(self, calls: list[_Call]) -> None:
        """Make many calls."""
        for writer in list(self.writers):
            for name, args, options in calls:
                self.attempt(writer, name, *args, **options)
            self.attempt(writer, "flush")

    def attempt(self, writer: str, name: str, *args: Any, **options: Any) -> Any:
        """Call a method of a writer; what it raises is said once, and the result is None."""
        try:
            with self._lock:
                return getattr(self.writers[writer], name)(*args, **options)
        except Exception as error:  # noqa: BLE001  any writer's
            is_disk = isinstance(error, OSError) and writer in _ON_DISK
            who = _ON_DISK[writer] if is_disk else writer
            if who not in self._failed:
                self._failed.add(who)
                act = f"{type(self.writers[writer]).__name__}.{name}"
                said = f"{act} raised {type(error).__name__}: {text_of(error)}; its numbers are lost"
                reason = getattr(error, "strerror", None) or error
                self._logger.log(f"cannot write {who}: {reason}; they are lost" if is_disk else said, "ERROR")

    def close(self) -> None:
        """Close all writers."""
        for writer in self.writers:
            self.attempt(writer, "close")


def _finish(held: list[_Call], listener: BackgroundListener, delivery: _Delivery) -> None:
    """Write what is left at the end of the program."""
    if not listener.is_inherited:
        listener.flush()
        delivery.deliver(held)
        held.clear()
        delivery.close()


def _copied(value: Any) -> Any:
    """Return data as it is now, for later."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().clone()
    return copy.copy(value) if hasattr(value, "__array__") else value


def _free_name(path: Path, stamp: str) -> Path:
    """Return the path with a time in its name, which no other file has."""
    stems = chain([f"{path.stem}-{stamp}"], (f"{path.stem}-{stamp}-{number}" for number in count(1)))
    names = (path.with_stem(stem) for stem in stems)
    return next(name for name in names if not name.exists())
