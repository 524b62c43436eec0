"""Let all processes act at the end of the same step, although nothing is exchanged in a step."""

import contextlib
import threading
import time
from typing import Any

from vision3d_engine.distributed.store import own_connection

_POLL_S = 0.2
# Longer than a busy machine needs to answer, shorter than what a scheduler waits between SIGTERM and SIGKILL.
_PATIENCE_S = 15.0
# More processes than this ask less often for the moment, so that the store's work does not grow with their number.
_CROWD = 64
_NEVER = "never"


class Agreement:
    """Wishes such as "stop" or "save", which one process has and all follow. Here the process is alone.

    `tick` is called at moments that all processes pass in the same order, such as the end of an update.
    """

    def __init__(self) -> None:
        self._wish: str | None = None

    def ask(self, wish: str) -> None:
        """Ask all processes for something; may be called by a signal handler. A newer wish replaces an older one."""
        self._wish = wish

    @property
    def wish(self) -> str | None:
        """What this process has asked for and not yet got."""
        return self._wish

    def tick(self) -> str | None:
        """Pass a moment and return the wish that all processes fulfil now, or None."""
        wish, self._wish = self._wish, None
        return wish

    @property
    def pending(self):
        return self.wish

    @contextlib.contextmanager
    def listening(self):
        self.start()
        try:
            yield
        finally:
            self.stop()

    def request(self, what):
        self.ask(what)

    def sync_point(self):
        return self.tick()

    def start(self) -> None:
        """Begin to listen to the other processes."""

    def stop(self) -> None:
        """Listen no more."""


class StoreAgreement(Agreement):
    """Agreement of several processes through the key-value store that has brought them together.

    A thread looks into the store five times a second. When it finds a wish it posts how many moments this process has
    begun, and the wish is fulfilled at the largest number of all, which the last one to post sets. A process that has
    not begun more goes on until there, so nobody waits for anybody within a step, and no step costs more than a look at
    a lock. The requests of a process do not grow with the number of processes, but for the last one to post.

    Args:
        rank: number of this process.
        size: number of processes.
        name: tells this agreement from others of the same processes.
    """

    def __init__(self, rank: int, size: int, name: str) -> None:
        super().__init__()
        self._rank, self._size = rank, size
        self._store: Any = own_connection(name)
        self._round = 0
        self._begun = 1
        self._limit: int | None = None
        self._holding = False
        self._agreed = ""
        self._changed = threading.Condition()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def tick(self) -> str | None:
        """Pass a moment; waits only while the processes agree on a wish, a fraction of a second."""
        with self._changed:
            while self._holding:
                self._changed.wait()
            if self._limit is not None and self._limit <= self._begun:
                return self._fulfil()
            self._begun += 1
            return None

    def _fulfil(self) -> str:
        """Return the wish that was agreed on, and let the next one be heard."""
        if self._wish == self._agreed:
            self._wish = None
        self._limit = None
        self._begun += 1
        self._changed.notify_all()
        return self._agreed

    def start(self) -> None:
        """Begin to listen to the other processes."""
        self._ended.clear()
        self._thread = threading.Thread(target=self._listen, name="agreement", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Listen no more."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(_PATIENCE_S / 3)
            is_silent, self._thread = self._thread.is_alive(), None
            with contextlib.suppress(RuntimeError, OSError):
                if is_silent:  # the store does not answer, and would not let us go
                    return
                self._store.compare_set(self._moment, "", _NEVER)

    def _listen(self) -> None:
        try:
            while not self._ended.wait(_POLL_S):
                self._look()
        except (RuntimeError, OSError):  # the store is gone with the process that held it: nobody is left to ask
            return

    def _look(self) -> None:
        """Hand this process's wish on, and agree on the moment when there is one."""
        key = f"{self._round}/wish"
        if self._wish is not None and not self._store.check([key]):
            self._store.compare_set(key, "", self._wish)
        if self._limit is None and self._store.check([key]):
            self._agree(self._store.get(key).decode())

    def _agree(self, wish: str) -> None:
        """Post what this process has begun; the last one to do so sets the moment for all."""
        with self._changed:
            self._holding = True
            self._store.set(f"{self._round}/begun/{self._rank}", str(self._begun))
        if self._store.add(f"{self._round}/posted", 1) == self._size:
            posted = [self._store.get(f"{self._round}/begun/{rank}") for rank in range(self._size)]
            self._store.compare_set(self._moment, "", str(max(map(int, posted))))
        limit = self._await_moment()
        with self._changed:
            if limit != _NEVER:
                self._limit, self._agreed = int(limit), wish
                self._round += 1
            else:
                self._ended.set()
            self._holding = False
            self._changed.notify_all()

    def _await_moment(self) -> str:
        """Wait for the moment; never, for all alike, when one has ended its run, or does not answer."""
        patience = time.monotonic() + _PATIENCE_S
        pause = _POLL_S / 10 * max(1.0, self._size / _CROWD)
        while not self._store.check([self._moment]):
            if self._ended.wait(pause) or time.monotonic() > patience:
                self._store.compare_set(self._moment, "", _NEVER)
        return self._store.get(self._moment).decode()

    @property
    def _moment(self) -> str:
        """Key of the moment of this round; the first value counts, so that all read the same."""
        return f"{self._round}/moment"
