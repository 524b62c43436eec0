"""How many steps ranks make together when they have different numbers of batches."""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from vision3d_engine.core.errors import DataError, listed


class UnevenRanks:
    """The steps of one epoch, known from the processes' numbers of batches; nothing is exchanged in a step.

    Args:
        lengths: batches of each process in rank order; None where it is not known.
        rank: number of this process.
        mode: ``"join"``: who runs out joins the others' updates with gradients of zeros; ``"repeat"``: by a step with
            its last batch, without weight; ``"drop"``: the surplus of others is left out; ``"cycle"``: who runs out
            starts its batches again.

    Attributes:
        length: steps of the epoch; None when the only process does not know.
        repeats: whether a process that joins makes real steps with its last batch.
        even_until: the last step in which every process has a batch of its own, as far as ranks join.

    Raises:
        DataError: when a process has no batch at all, or several do not know how many they have.
    """

    def __init__(self, lengths: Sequence[int | None], rank: int, mode: str) -> None:
        self._known = [length for length in lengths if length is not None]
        _check(lengths)
        self._lengths, self._local = lengths, lengths[rank]
        self._mode = mode
        self.repeats = mode == "repeat"
        self._shortest = min(self._known, default=None)
        self.length = self._shortest if mode == "drop" else max(self._known, default=None)
        joins = mode in {"join", "repeat"} and self._shortest is not None and self._shortest != self.length
        self.even_until: float = self._shortest if joins else math.inf  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def walked(self) -> list[int | None]:
        """Batches of their own that the processes walk, in rank order; None where it is not known."""
        is_alike = self._mode in {"drop", "cycle"}
        return [self.length if is_alike else length for length in self._lengths]

    def mean_weight(self, iteration: int) -> float:
        """Return the share of processes that have a batch of their own in a step."""
        if iteration <= self.even_until:
            return 1
        return sum(iteration <= length for length in self._known) / len(self._known)

    @property
    def last_own(self) -> int | None:
        """The step with this process's last batch, after which it joins others; None when it has enough."""
        return self._local if self._local != self.length and self.even_until < math.inf else None

    @property
    def own_until(self) -> float:
        """The step with this process's last batch; what follows repeats one, in whatever mode."""
        return math.inf if self._local is None else self._local

    def is_joining(self, iteration: int) -> bool:
        """Tell whether this process has run out of batches while others have not."""
        return iteration > self.even_until and self._local is not None and iteration > self._local

    def batches(self, left: Iterable[Any], done: int, read: Callable[[int], Iterable[Any]]) -> Iterable[Any]:
        """Return a batch for every step that is left: its own, then the last one again, or all of them again.

        Args:
            left: what is left of this process's own.
            done: steps that are behind us.
            read: returns this process's batches from a number on, counted from 0.
        """
        if self.length is None or self.length == self._local:
            return left  # to its end, where a loader notices that it is longer than it says
        prolonged = self._cycled if self._mode == "cycle" else self._prolonged
        return islice(prolonged(left, done, read), max(self.length - done, 0))

    def _prolonged(self, left: Iterable[Any], done: int, read: Callable[[int], Iterable[Any]]) -> Iterator[Any]:
        """Go on with the last batch; to repeat a step as the loader gave it, since a step may change what it gets."""
        kept = copy.deepcopy if self.repeats else _as_it_is
        last = None
        for number, batch in enumerate(left, start=done + 1):
            last = kept(batch) if number == self._local else None
            yield batch
        if last is None:  # a resume in the midst of joining
            last = next(iter(read((self._local or 1) - 1)))
        while True:
            yield kept(last)

    def _cycled(self, left: Iterable[Any], done: int, read: Callable[[int], Iterable[Any]]) -> Iterator[Any]:
        yield from left
        if done > (self._local or done):  # a resume in the midst of a later round
            yield from read(done % (self._local or 1))
        while True:
            yield from read(0)


def _as_it_is(batch: Any) -> Any:
    return batch


def _check(lengths: Sequence[int | None]) -> None:
    if None in lengths and len(lengths) > 1:
        message = (
            f"the training loaders of the {len(lengths)} processes do not all know their length ({listed(lengths)}), "
            "so they could wait for each other for ever. Give the loader a __len__, or use IterBasedTrainer"
        )
        raise DataError(message)
    if 0 in lengths:
        message = f"process {lengths.index(0)} of {len(lengths)} has no training batch; use fewer processes"
        raise DataError(message)
