"""Batches of an epoch that end where the length of their loader says."""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, count, islice, repeat
from operator import itemgetter
from typing import Any

from vision3d_engine.core.errors import DataError
from vision3d_engine.data.endless_stream import Place


def placed(
    batches: Iterable[Any], epoch: int, start: int, sizes: Iterable[int], numbers: Iterator[int] | None = None
) -> Iterator[tuple[Place, Any]]:
    """Return batches with their places, from the one after number ``start`` on.

    Args:
        batches: the batches.
        epoch: number of the epoch.
        start: batches that are left out.
        sizes: samples of each batch.
        numbers: those of the batches, when they are counted elsewhere.
    """
    places = zip(repeat(epoch), numbers or count(start + 1), sizes, strict=False)
    return map(itemgetter(1, 0), zip(batches, places, strict=False))  # the size of a batch is known once it is there


def at_most(length: int | None, limit: int | None) -> int | None:
    """Return a length that a limit may shorten; None where it is not known."""
    return length if length is None or limit is None else min(length, limit)


class ExactLength:
    """Holds a loader to its length, on which the processes have agreed; costs nothing between the batches.

    Args:
        name: what the loader is called in messages.
        rank: number of this process.
        say: takes a message and its level.
    """

    def __init__(self, name: str, rank: int, say: Callable[[str, str], None]) -> None:
        self._name, self._rank, self._say = name, rank, say
        self._has_said_surplus = False

    def hold(
        self,
        batches: Iterator[Any],
        length: int | None,
        epoch: int,
        start: int,
        *,
        sizes: Iterable[int] = repeat(1),
        total: int | None = None,
        if_empty: str = "",
    ) -> Iterator[tuple[Place, Any]]:
        """Return the batches of an epoch with their places, cut at its length, which is said once.

        Args:
            batches: those from number ``start`` (counted from 0) on.
            length: batches of the whole epoch, None when not known.
            epoch: number of the epoch.
            start: batches that are left out.
            sizes: samples of each batch; 1 where that is not known.
            total: batches of all processes together, where they share them out.
            if_empty: the error that the epoch ends with when it has no batch; an empty text allows it.

        Raises:
            DataError: when they end before the length, with both numbers.
        """
        left = None if length is None else max(length - start, 0)
        numbers = count(start + 1)
        read = placed(islice(batches, left), epoch, start, chain(sizes, repeat(1)), numbers)
        return chain(read, self._check_end(numbers, length, epoch, batches, _stated(length, total), if_empty))

    def _check_end(
        self,
        numbers: Iterator[int],
        length: int | None,
        epoch: int,
        batches: Iterator[Any],
        stated: str,
        if_empty: str,
    ) -> Iterator[tuple[Place, Any]]:
        """Yield nothing; as many numbers have been taken as there were batches."""
        ended_at = next(numbers) - 1
        if length is not None and ended_at < length:
            raise DataError(_TOO_SHORT.format(self._name, self._rank, ended_at, epoch, stated))
        if length is not None and next(batches, batches) is not batches and not self._has_said_surplus:
            self._has_said_surplus = True
            self._say(_TOO_LONG.format(self._name, stated), "WARNING")
        if ended_at == 0 and if_empty:
            raise DataError(if_empty)
        yield from ()


def _stated(length: int | None, total: int | None) -> str:
    """Return the length that a loader says it has, and what of it is this process's."""
    return f"{length}" if total in {None, length} else f"{total} ({length} of them for this process)"


_TOO_SHORT = (
    "the {} of process {} ended after {} batches in epoch {}, but its len is {}. If that is an estimate, as of a batch "
    "sampler that fills batches by size: make __len__ exact or too small (what lies behind it is left out), or remove "
    "it and train by IterBasedTrainer with trainer.num_iters_per_epoch"
)
_TOO_LONG = (
    "the {} has more batches than its len, {}; they are left out in every epoch. Make __len__ exact, or remove it and "
    "train by IterBasedTrainer with trainer.num_iters_per_epoch"
)
