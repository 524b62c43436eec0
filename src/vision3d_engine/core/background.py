"""Work off the hot path: a step hands an item in, a thread formats and writes many at once."""

import os
from collections import deque
from collections.abc import Callable
from threading import Event, RLock, Thread, get_ident
from typing import Any

_EVERY_S = 0.2


class BackgroundListener:
    """Hands items on, in order and many at a time, five times a second.

    To hand an item in costs a microsecond: no step waits for a format or a disk, and no item wakes the thread up, since
    the interpreter changes threads at the expense of the training step. The thread lives from the first item until
    `flush`. A forked process, such as a data worker, has no such thread and writes its items at once.

    Args:
        write: takes a list of items; called in the thread or in `flush`, never twice at a time. It must not raise.
    """

    def __init__(self, write: Callable[[list[Any]], None]) -> None:
        self._write = write
        self._waiting: deque[Any] = deque()
        self._pid = os.getpid()
        self._lock = RLock()
        self._running: tuple[Thread, Event] | None = None  # the event ends the thread
        self._writing: int | None = None  # identifier of the thread that is in `write`

    @property
    def is_inherited(self) -> bool:
        """Whether this is the copy of a forked process, whose locks may be held by threads that it does not have."""
        return os.getpid() != self._pid

    @property
    def waiting(self) -> int:
        """How many items are not yet handed on."""
        return len(self._waiting)

    def put(self, item: Any) -> None:
        """Hand an item in."""
        if self.is_inherited:
            self._write([item])
            return
        self._waiting.append(item)
        if self._running is None and self._writing != get_ident():
            self._start()

    def _start(self) -> None:
        with self._lock:
            if self._running is None:
                thread = Thread(target=self._listen, args=(ended := Event(),), daemon=True)
                thread.start()
                self._running = thread, ended

    def _listen(self, ended: Event) -> None:
        while not ended.wait(_EVERY_S):
            self._write_waiting()

    def flush(self) -> None:
        """Write what is there, now, and end the thread.

        Does nothing where this thread is at work here already, as when an object's ``__del__`` logs a message.
        """
        if self.is_inherited or get_ident() in (self._writing, self._running and self._running[0].ident):
            return
        self._stop()
        self._write_waiting()  # an item that comes later starts a new thread, so none is left behind

    def _stop(self) -> None:
        with self._lock:
            running, self._running = self._running, None
        if running is not None:
            thread, ended = running
            ended.set()
            thread.join()

    def _write_waiting(self) -> None:
        with self._lock:
            self._writing = get_ident()
            try:
                if items := [self._waiting.popleft() for _ in range(len(self._waiting))]:
                    self._write(items)
            finally:
                self._writing = None
