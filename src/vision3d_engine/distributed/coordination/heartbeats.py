"""The signs of life that the processes of a run post in their store, each with the position of its main thread."""

import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from vision3d_engine.core.children import home, is_running
from vision3d_engine.distributed.coordination.stack_location import StackLocation, find_location

_STAY_S = 1.0
_MAX_NAMES = 5
_HOME = home()


class Position:
    """Where a thread is, and since when; its line is looked up only when its position stays for a second.

    Args:
        thread: the thread.
        look: returns its position, such as ``train epoch 1, iteration 5``.
        where: the position that is known.
    """

    def __init__(self, thread: int, look: Callable[[], str], where: str = "") -> None:
        self._thread, self._look = thread, look
        self.where = where
        self.at = StackLocation("", is_waiting=False)
        self._reached = self._since = time.monotonic()

    def where_now(self) -> str:
        """Return the position now; the one that is known when it cannot be told."""
        with suppress(Exception):
            return self._look()
        return self.where

    def updated(self) -> "Position":
        """Return the position now; this one if it has not changed."""
        if (where := self.where_now()) != self.where:
            return Position(self._thread, self._look, where)
        if time.monotonic() - self._reached >= _STAY_S and (at := find_location(self._thread)) != self.at:
            self.at, self._since = at, time.monotonic()
        return self

    def __str__(self) -> str:
        return f"{self.where} ({self.at.line})" if self.at.line else self.where

    def waiting_s(self) -> float:
        """Return how long the thread has waited for other processes."""
        return time.monotonic() - self._since if self.at.is_waiting else 0.0


class Heartbeat(NamedTuple):
    """A sign of life.

    Attributes:
        number: counted from 1.
        host: machine of the process.
        home: see `home`.
        pid: its number there.
        position: of its main thread, with the line of code if it has been there for a second.
        is_waiting: it has waited for others for a second.
        has_ended: it is the last one, of a process that has ended its run.
    """

    number: int
    host: str
    home: str
    pid: int
    position: str
    is_waiting: bool
    has_ended: bool

    @property
    def is_of_here(self) -> bool:
        """Whether its process is one of this machine."""
        return self.home == _HOME

    @property
    def is_running_here(self) -> bool:
        """Whether its process runs on this machine, though it may be silent: C code may hold python's lock for long."""
        return self.is_of_here and is_running(self.pid)


class Heartbeats:
    """Posts the heartbeats of this process and reads those of all.

    Args:
        store: the store of the processes.
        rank: number of this process.
        size: number of processes.
    """

    def __init__(self, store: Any, rank: int, size: int) -> None:
        self._store, self._rank, self._size = store, rank, size
        self.posted = 0
        self._neighbour: tuple[Heartbeat | None, float] = (None, time.monotonic())

    def post(self, position: Position, *, has_ended: bool = False) -> None:
        """Post a heartbeat."""
        self.posted += 1
        beat = Heartbeat(
            self.posted, platform.node(), _HOME, os.getpid(), str(position), position.waiting_s() >= 1, has_ended
        )
        self._store.set(f"heartbeat/{self._rank}", json.dumps(beat))

    @property
    def neighbour(self) -> int:
        """The process that this one looks at."""
        return (self._rank + 1) % self._size

    def silent_neighbour(self) -> tuple[Heartbeat | None, float]:
        """Return the last heartbeat of the neighbour, and for how long it has been that; 0 before its run has begun."""
        beat, now = self._last_of(self.neighbour), time.monotonic()
        if beat is None or beat != self._neighbour[0]:
            self._neighbour = (beat, now)
        return beat, now - self._neighbour[1]

    def read_all(self) -> list[Heartbeat | None]:
        """Return the last heartbeat of every process, in rank order; None of one that has not started its run."""
        return [self._last_of(rank) for rank in range(self._size)]

    def _last_of(self, rank: int) -> Heartbeat | None:
        key = f"heartbeat/{rank}"
        return Heartbeat(*json.loads(self._store.get(key))) if self._store.check([key]) else None


def described(ranks: Sequence[int], beats: Sequence[Heartbeat | None], *, are_gone: bool = False) -> str:
    """Say of processes where they are, or that they are gone; of many, of the first ones."""
    texts = [(_gone if are_gone else _late)(rank, beats[rank]) for rank in ranks[:_MAX_NAMES]]
    return "; ".join(texts + [f"and {len(ranks) - _MAX_NAMES} more"] * (len(ranks) > _MAX_NAMES))


def _gone(rank: int, beat: Heartbeat | None) -> str:
    if beat is None or beat.has_ended:
        return f"process {rank} has ended its run before the others"
    return f"process {rank} on {beat.host} is gone: its last sign of life was in {beat.position}"


def _late(rank: int, beat: Heartbeat | None) -> str:
    if beat is None:
        return f"process {rank}, which has not started its run"
    if beat.has_ended:
        return f"process {rank}, which has ended its run"
    return f"process {rank} on {beat.host}, which is in {beat.position}"
