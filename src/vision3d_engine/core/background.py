"""Work off the hot path: a step hands an item in, a thread formats and writes many at once."""

import os
import threading
from collections.abc import Callable
from logging.handlers import QueueListener
from queue import SimpleQueue
from typing import Any

_EVERY_S = 0.2
_MANY = 10_000


class BackgroundListener(QueueListener):
    """Hands items on, in order and many at a time, about five times a second.

    To hand an item in costs a microsecond: no step waits for a format or a disk, and between two rounds no thread is
    woken up, since the interpreter changes threads at the expense of the training step. The thread lives from the
    first item until `flush`. A forked process, such as a data worker, has no such thread and writes its items at once.

    Args:
        write: takes a list of items; called in the thread or in `flush`, never twice at a time. It must not raise.
    """

    def __init__(self, write: Callable[[list[Any]], None]) -> None:
        self._waiting: SimpleQueue[Any] = SimpleQueue()
        super().__init__(self._waiting)
        self._write = write
        self._taken: list[Any] = []
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._hurry = threading.Event()
        self._is_started = False
        self._listening: int | None = None  # identifiers of the threads that are at work
        self._flushing: int | None = None

    @property
    def is_inherited(self) -> bool:
        """Whether this is the copy of a forked process, whose locks may be held by threads that it does not have."""
        return os.getpid() != self._pid

    def put(self, item: Any) -> None:
        """Hand an item in."""
        if self.is_inherited:
            self._write([item])
            return
        self._waiting.put(item)
        if not self._is_started and not self._is_busy():
            self._start_thread()

    def _start_thread(self) -> None:
        with self._lock:
            if not self._is_started:
                self._hurry.clear()
                self.start()
                self._is_started = True

    def flush(self) -> None:
        """Write what is there, now, and end the thread; does nothing while `write` itself calls it."""
        if self.is_inherited or self._is_busy():
            return
        with self._lock:
            self._flushing = threading.get_ident()
            try:
                if self._is_started:
                    self.stop()
                self._is_started = False  # from here on an item starts a new thread, so none is left behind
                while not self._waiting.empty():
                    self.handle(self._waiting.get())
                self._write_taken()
            finally:
                self._flushing = self._listening = None

    def _is_busy(self) -> bool:
        """Tell whether this thread is at work here already, as when an object's ``__del__`` logs a message."""
        return threading.get_ident() in (self._listening, self._flushing)

    def enqueue_sentinel(self) -> None:
        """Let the thread end without its pause."""
        super().enqueue_sentinel()
        self._hurry.set()

    def dequeue(self, block: bool) -> Any:
        """Return the next item; write those that were taken when no more is there, and let others gather then."""
        self._listening = threading.get_ident()
        if self._waiting.empty() or len(self._taken) >= _MANY:
            self._write_taken()
        item = self._waiting.get()
        if not self._taken:
            self._hurry.wait(_EVERY_S)
        return item

    def handle(self, record: Any) -> None:
        """Take an item."""
        self._taken.append(record)

    def _write_taken(self) -> None:
        items, self._taken = self._taken, []
        if items:
            self._write(items)
