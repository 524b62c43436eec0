"""Deliveries off the hot path: a step leaves a note, a thread formats and writes many at once."""

import threading
from collections.abc import Callable
from typing import Any

_EVERY_S = 0.2


class Outbox:
    """Collects notes and hands them on, in order and many at a time, five times a second.

    A note costs a microsecond; what delivering costs, or how long a disk takes, no step waits for.

    Args:
        deliver: takes a list of notes; called in a thread, or in `flush`, never twice at a time.
    """

    def __init__(self, deliver: Callable[[list[Any]], None]) -> None:
        self._deliver = deliver
        self._notes: list[Any] = []
        self._lock = threading.Lock()
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
        self._closed.clear()
        self._thread = threading.Thread(target=self._work, name="outbox", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while not self._closed.is_set():
            self._waiting.wait()
            self._closed.wait(_EVERY_S)
            self.flush()

    def flush(self) -> None:
        """Deliver what is there, now."""
        if not self._notes and not self._lock.locked():
            return
        with self._lock:
            self._waiting.clear()
            notes, self._notes = self._notes, []
            if notes:
                self._deliver(notes)

    def close(self) -> None:
        """Deliver what is there and end the thread; a later note begins a new one."""
        self._closed.set()
        self._waiting.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        self._thread = None
        self.flush()
