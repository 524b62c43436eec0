"""Reading a loader whose batches come from worker processes, which belong to the run."""

import contextlib
import multiprocessing
import re
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any

from vision3d_engine.core.child_stacks import samples_of
from vision3d_engine.core.children import failed_children, lost_children, starting_children
from vision3d_engine.core.errors import WorkerError, listed, text_of
from vision3d_engine.data.worker_handover import telling_workers
from vision3d_engine.data.worker_limits import advice_on, allow_open_files

_DIED = re.compile(r"DataLoader worker \(pid")
_RAISED = re.compile(r"Caught \w+ in DataLoader worker")
_END = object()


def opened(loader: Iterable[Any]) -> Iterator[Any]:
    """Return the iterator of a loader, now; what ends the run does not end its workers before.

    Raises:
        WorkerError: while a batch is awaited, when a worker has died.
    """
    if not getattr(loader, "num_workers", 0):
        return iter(loader)
    context: Any = getattr(loader, "multiprocessing_context", None) or multiprocessing
    context.Lock()  # starts what spawned processes need; before Python 3.12 it would unblock signals when they start
    allow_open_files()
    with starting_children(), telling_workers(loader), _said():
        stream = iter(loader)
    _WAITING.take_over()
    return _awaited(stream)


def _awaited(stream: Iterator[Any]) -> Iterator[Any]:
    while (batch := _WAITING.next_of(stream)) is not _END:
        yield batch


def waiting_s() -> float:
    """Return for how long the main thread has waited for the batch of a worker; a thread may ask."""
    return _WAITING.seconds()


class _Waiting:
    """Where the death of a worker is told: only while a batch is awaited.

    torch tells it by an exception out of a signal handler, wherever the main thread is: in the midst of an update, or
    in the start of a thread, which then waits for ever. Here its handler is called when the next batch is awaited.
    """

    def __init__(self) -> None:
        self._since: float | None = None
        self._is_late = False
        self._raise_if_dead: Any = None

    def take_over(self) -> None:
        """Put torch's handler behind this one; only a main thread can do so, and torch has one there only."""
        if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
            return
        handler = signal.getsignal(signal.SIGCHLD)
        if callable(handler) and handler != self._handle:
            self._raise_if_dead = handler
            signal.signal(signal.SIGCHLD, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._is_late = self._since is None
        if not self._is_late:
            self._raise_if_dead(number, frame)

    def next_of(self, stream: Iterator[Any]) -> Any:
        """Return the next batch, or the mark of the end."""
        self._since = time.monotonic()
        try:
            with _said():
                if self._is_late:
                    self._handle(signal.SIGCHLD, None)
                return next(stream, _END)
        finally:
            self._since = None

    def seconds(self) -> float:
        since = self._since
        return 0.0 if since is None else time.monotonic() - since


@contextlib.contextmanager
def _said() -> Iterator[None]:
    """Let an error of workers say what is known of it."""
    try:
        yield
    except (RuntimeError, OSError, EOFError) as error:
        if (said := _described(error)) is not None:
            raise WorkerError(said) from error
        raise


def _described(error: BaseException) -> str | None:
    """Say what is known of the death of a worker, or of a limit that it has met, and what to do; else None."""
    text = text_of(error).strip()
    if not _DIED.match(text) and (not lost_children() or _RAISED.match(text)):
        text = text or repr(error)
        advice = advice_on(text)
        return advice and f"a data worker cannot hand over its batch: {text.splitlines()[-1]}. {advice}"
    codes = sorted({-(process.exitcode or 0) for process in lost_children()})
    known = f" (ended by {', '.join(signal.Signals(code).name for code in codes)})" if codes else ""
    loading = f", whose last was {listed(samples)}" if (samples := samples_of(failed_children())) else ""
    return f"a data worker has died{known}{loading}: {text}. {advice_on(text, signal.SIGBUS in codes) or _CAUSES}"


_CAUSES = (
    "SIGKILL is mostly the system that is out of memory, SIGSEGV a library; use fewer workers, or num_workers=0 to see "
    "it happen here"
)


_WAITING = _Waiting()
