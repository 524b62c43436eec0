"""Where batches stand in the data, and an endless stream that knows where it stands."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

Place = tuple[int, int, int]
"""An epoch of the data, the number of a batch in it, both counted from 1, and what its numbers weigh in a mean."""


class StreamPosition(NamedTuple):
    """Where an endless stream started, and how far it is.

    Attributes:
        first_epoch: the first epoch of the data.
        taken: batches that each process has taken since.
        place: epoch and batch of the last one that this process took, for loaders that only it can count.
        first: the process that had the first batch; those before it had none in the first step.
    """

    first_epoch: int
    taken: int
    place: Place
    first: int = 0


class EndlessStream:
    """An endless stream that knows where it stands; after an error it stands nowhere."""

    def __init__(self, batches: Iterator[tuple[Place, Any]], position: StreamPosition) -> None:
        self._batches = batches
        self._start, self._place = position, position.place
        self._taken: int | None = position.taken

    @property
    def position(self) -> StreamPosition | None:
        """Where it stands; None while it reads a batch, and for good when that fails."""
        return None if self._taken is None else self._start._replace(taken=self._taken, place=self._place)

    def __iter__(self) -> Iterator[tuple[Place, Any]]:
        return self

    def __next__(self) -> tuple[Place, Any]:
        taken, self._taken = self._taken, None
        self._place, batch = next(self._batches)
        self._taken = (taken or 0) + 1
        return self._place, batch


def dealt_epochs(
    position: StreamPosition, rank: int, size: int, total_of: Callable[[int], int]
) -> Iterator[tuple[int, int, int]]:
    """Yield the epochs in which a process has batches of a stream that all share, without end; plain arithmetic.

    Batch i of the stream goes to process ``(i + position.first) % size``.

    Args:
        position: where the stream goes on.
        rank: number of the process.
        size: number of processes.
        total_of: returns the batches of an epoch, all processes together.

    Returns:
        Number of the epoch, the process's batches that are behind it, and the process that has the epoch's batch 0.
    """
    ahead, before, epoch = position.taken * size + rank - position.first, position.first, position.first_epoch
    while True:
        total = total_of(epoch)
        if ahead < total:
            yield epoch, len(range((rank - before) % size, ahead, size)), before % size
            ahead = total
        ahead, before, epoch = ahead - total, before + total, epoch + 1
