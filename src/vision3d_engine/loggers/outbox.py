"""Deliveries off the hot path: a step leaves a note, a thread formats and writes many at once."""

import os
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

_EVERY_S = 0.2


class Outbox:
    """Collects notes and hands them on, in order and many at a time, five times a second.

    A note costs a microsecond; what delivering costs, or how long a disk takes, no step waits for. What is left at the
    end of the program is delivered then. A forked process, such as a data worker, begins with an empty one.

    Args:
        deliver: takes a list of notes; called in a thread, or in `flush`, never twice at a time. What it raises in the
            thread is raised by the next `flush` or `close`, and the thread goes on with the notes that come after.
    """

    def __init__(self, deliver: Callable[[list[Any]], None]) -> None:
        self._deliver = deliver
        self._begin_empty()
        _ALL.add(self)
        weakref.finalize(self, _close, weakref.ref(self))

    def _begin_empty(self) -> None:
        self._notes: deque[Any] = deque()
        self._lock, self._beginning = threading.Lock(), threading.Lock()
        self._deliverer: int | None = None
        self._error: Exception | None = None
        self._waiting = threading.Event()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def put(self, note: Any) -> None:
        """Leave a note."""
        self._notes.append(note)
        if not self._waiting.is_set():
            self._waiting.set()
            if self._thread is None:
                self._begin()

    def _begin(self) -> None:
        with self._beginning:
            if self._thread is None:
                self._closed.clear()
                self._thread = threading.Thread(target=self._work, name="outbox", daemon=True)
                self._thread.start()

    def _work(self) -> None:
        while not self._closed.is_set():
            self._waiting.wait()
            self._closed.wait(_EVERY_S)
            try:
                self._hand_on()
            except Exception as error:
                self._error = error

    def flush(self) -> None:
        """Deliver what is there, now; returns at once when `deliver` itself calls it."""
        if self._deliverer == threading.get_ident():
            return
        if self._notes or self._lock.locked():
            self._hand_on()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _hand_on(self) -> None:
        """Deliver what is there; a note that comes in the meantime waits for the next time."""
        with self._lock:
            self._deliverer = threading.get_ident()
            try:
                self._waiting.clear()
                notes = [self._notes.popleft() for _ in range(len(self._notes))]
                if notes:
                    self._deliver(notes)
            finally:
                self._deliverer = None

    def close(self) -> None:
        """Deliver what is there and end the thread; a later note begins a new one."""
        self._closed.set()
        self._waiting.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        self._thread = None
        self._waiting.clear()
        self.flush()


_ALL: weakref.WeakSet[Outbox] = weakref.WeakSet()


def _close(outbox: weakref.ref[Outbox]) -> None:
    if (found := outbox()) is not None:
        found.close()


def _begin_empty_in_child() -> None:
    """Leave the parent's notes to the parent, and its lock, which nobody in this process would release."""
    for outbox in _ALL:
        outbox._begin_empty()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_empty_in_child)
