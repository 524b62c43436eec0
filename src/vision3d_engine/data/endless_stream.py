"""Where batches stand in the data, and an endless stream that knows where it stands."""

from collections.abc import Iterator
from typing import Any, NamedTuple

Place = tuple[int, int, int]
"""An epoch of the data, the number of a batch in it, both counted from 1, and what its numbers weigh in a mean."""


class StreamPosition(NamedTuple):
    """Where an endless stream started, and how far it is.

    Attributes:
        first_epoch: the first epoch of the data.
        taken: batches that each process has taken since.
        place: epoch and batch of the last one that this process took, for loaders that only it can count.
    """

    first_epoch: int
    taken: int
    place: Place


class EndlessStream:
    """An endless stream that knows where it stands; after an error it stands nowhere."""

    def __init__(self, batches: Iterator[tuple[Place, Any]], position: StreamPosition) -> None:
        self._batches = batches
        self._first_epoch, self._place = position.first_epoch, position.place
        self._taken: int | None = position.taken

    @property
    def position(self) -> StreamPosition | None:
        """Where it stands; None while it reads a batch, and for good when that fails."""
        return None if self._taken is None else StreamPosition(self._first_epoch, self._taken, self._place)

    def __iter__(self) -> Iterator[tuple[Place, Any]]:
        return self

    def __next__(self) -> tuple[Place, Any]:
        taken, self._taken = self._taken, None
        self._place, batch = next(self._batches)
        self._taken = (taken or 0) + 1
        return self._place, batch
