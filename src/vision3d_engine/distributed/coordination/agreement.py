"""Let all processes act at the end of the same step, although nothing is exchanged in a step."""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from vision3d_engine.core.errors import ProcessError, shortened, text_of
from vision3d_engine.distributed.coordination.store import lasting_connection, own_connection, talking_thread

LAUNCHER_IS_GONE = "stop the launcher is gone"
_POLL_S = 0.2
_LAUNCHER_POLL_S = 1.0
# Longer than a busy machine needs to answer, shorter than what a scheduler waits between SIGTERM and SIGKILL.
_PATIENCE_S = 15.0
# More processes than this look less often for the sync point, so that the store's work does not grow with their number.
_MANY = 64
_NEVER = "never"


class Agreement:
    """Requests such as "stop" or "save", which one process makes and all carry out. Here the process is alone.

    `sync_point` is called at points that all processes pass in the same order, such as the end of an update.

    Attributes:
        is_alone: there is no other process to agree with.
    """

    def __init__(self) -> None:
        self.is_alone = True
        self._requests: deque[str] = deque()  # a signal may come between any two operations, so each is atomic

    def request(self, what: str) -> None:
        """Request something of all processes; a signal handler or a thread may call it. Older requests come first."""
        self._requests.append(what)

    @property
    def pending(self) -> str | None:
        """What this process has requested first and all have not carried out yet."""
        return next(iter(list(self._requests)), None)

    def sync_point(self) -> str | None:
        """Pass a sync point and return the request that all processes carry out now, or None."""
        return self._requests.popleft() if self._requests else None

    @contextlib.contextmanager
    def listening(self, warn: Callable[[str], None]) -> Iterator[None]:
        """Listen to the other processes while a block runs; whoever ends it first ends the agreement of all.

        Args:
            warn: says to people what stands in the way of an agreement; called by a thread.
        """
        self._requests.clear()  # what nobody carried out in an earlier block
        yield


class StoreAgreement(Agreement):
    """Agreement of several processes through the key-value store that has brought them together.

    A thread looks into the store five times a second. When it finds a request it posts the number of the sync point
    that this process comes to next, and the request is carried out at the largest number of all, which the last one to
    post sets. Processes with a smaller number go on until there, so nobody waits for anybody within a step, and no step
    costs more than a look at a lock. What a process asks of the store does not grow with the number of processes, but
    for the last one to post.

    Args:
        rank: number of this process.
        size: number of processes.
        name: tells this agreement from others of the same processes.
        outlives_launcher: all processes are on one machine, and the store that has brought them together is that of
            their launcher: when it is gone they stop.
    """

    def __init__(self, rank: int, size: int, name: str, *, outlives_launcher: bool = False) -> None:
        super().__init__()
        self.is_alone = size == 1
        self._rank, self._size = rank, size
        shared = own_connection(name)
        self._store: Any = lasting_connection(name, is_main=rank == 0) if outlives_launcher else shared
        self._launcher: Any = shared if outlives_launcher else None
        self._warn: Callable[[str], None] = print
        self._is_lost = False
        self._round = 0
        self._next = 1
        self._due: int | None = None
        self._is_agreeing = False
        self._agreed = ""
        self._changed = threading.Condition()
        self._stopped = threading.Event()

    def sync_point(self) -> str | None:
        """Pass a sync point; waits only while the processes agree on a request, a fraction of a second.

        Raises:
            ProcessError: when the processes can agree on nothing any more.
        """
        with self._changed:
            while self._is_agreeing and not self._is_lost:
                self._changed.wait()
            if self._is_lost:
                raise ProcessError(_LOST)
            is_due = self._due is not None and self._due <= self._next
            self._next += 1
            if is_due:
                self._due = None
                if self.pending == self._agreed:
                    self._requests.popleft()
            return self._agreed if is_due else None

    @contextlib.contextmanager
    def listening(self, warn: Callable[[str], None]) -> Iterator[None]:
        """Listen to the other processes while a block runs; whoever ends it first ends the agreement of all."""
        self._requests.clear()
        self._stopped.clear()
        self._warn = warn
        thread = talking_thread(self._listen, "agreement")
        thread.start()
        try:
            yield
        finally:
            self._stopped.set()
            thread.join(_PATIENCE_S / 3)
            if not thread.is_alive():  # otherwise the store does not answer, and would not let us go
                with contextlib.suppress(RuntimeError, OSError):
                    self._store.compare_set(self._due_key, "", _NEVER)

    def _listen(self) -> None:
        """Look for requests until the end; a store that fails is asked again, until it has failed for long."""
        looked_at, failing_since = time.monotonic(), None
        while not self._stopped.wait(_POLL_S) and not self._is_lost:
            try:
                self._look()
                failing_since = None
            except (RuntimeError, OSError) as error:
                failing_since = self._bear(error, failing_since)
            if time.monotonic() - looked_at > _LAUNCHER_POLL_S:
                self._look_for_launcher()
                looked_at = time.monotonic()

    def _bear(self, error: Exception, since: float | None) -> float:
        """Return since when the store fails; after too long give up, for the main thread to hear."""
        now = time.monotonic()
        if since is None:
            self._warn(f"the store of the processes does not answer ({_first_line(error)}); trying again")
        elif now - since > _PATIENCE_S:
            with self._changed:
                self._is_lost = True
                self._changed.notify_all()
        return now if since is None else since

    def _look_for_launcher(self) -> None:
        """Request a stop when the launcher is gone, with its store."""
        try:
            if self._launcher is not None:
                self._launcher.check(["launcher"])
        except (RuntimeError, OSError):
            self._launcher = None
            self.request(LAUNCHER_IS_GONE)

    def _look(self) -> None:
        """Hand this process's request on, and agree on the sync point when there is one."""
        key = f"{self._round}/request"
        if (request := self.pending) is not None and not self._store.check([key]):
            self._store.compare_set(key, "", request)
        if self._due is None and self._store.check([key]):
            self._agree(self._store.get(key).decode())

    def _agree(self, request: str) -> None:
        """Post the sync point that comes next here; the last one to do so sets the one for all."""
        with self._changed:
            self._is_agreeing = True
            self._store.set(f"{self._round}/next/{self._rank}", str(self._next))
        if self._store.add(f"{self._round}/posted", 1) >= self._size:  # more, when this is tried again
            posted = [self._store.get(f"{self._round}/next/{rank}") for rank in range(self._size)]
            self._store.compare_set(self._due_key, "", str(max(map(int, posted))))
        due = self._await_due()
        with self._changed:
            if due == _NEVER:
                self._stopped.set()
            else:
                self._due, self._agreed, self._round = int(due), request, self._round + 1
            self._is_agreeing = False
            self._changed.notify_all()

    def _await_due(self) -> str:
        """Wait for the sync point, and say for whom; never, for all alike, when one has ended its run."""
        said_at = time.monotonic()
        pause = _POLL_S / 10 * max(1.0, self._size / _MANY)
        while not self._store.check([self._due_key]):
            if self._stopped.wait(pause):
                self._store.compare_set(self._due_key, "", _NEVER)
            elif time.monotonic() - said_at > _PATIENCE_S:
                said_at = time.monotonic()
                self._warn(f"to agree on a request ('{self.pending or 'of another process'}') {self._late()}")
        return self._store.get(self._due_key).decode()

    def _late(self) -> str:
        late = [rank for rank in range(self._size) if not self._store.check([f"{self._round}/next/{rank}"])]
        return f"this process still waits for process {shortened(late)}"

    @property
    def _due_key(self) -> str:  # the first value that is set counts, so that all read the same
        return f"{self._round}/due"


def _first_line(error: Exception) -> str:
    return (text_of(error).splitlines() or [type(error).__name__])[0][:200]


_LOST = (
    "the store of the processes is gone, with the launcher or the machine that held it: they could no longer agree to "
    "save or to stop. 'checkpoint.pth' is that of the last save; go on with --resume"
)
