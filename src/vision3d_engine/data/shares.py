"""Which positions of an epoch are whose, and in batches of how many samples."""

from collections.abc import Iterator
from itertools import chain, repeat

_CHUNK = 1024


def batch_sizes(numbers: range, batch_size: int, count: int) -> Iterator[int]:
    """Return the samples of numbered batches, of which the last one may not be full."""
    full = range(numbers.start, min(numbers.stop, count // batch_size), numbers.step)
    rest = [count % batch_size] * (len(numbers) - len(full))
    return chain(repeat(batch_size, len(full)), rest)


class Shares:
    """The positions of a process's batches from batch ``start`` on, merged to long ranges where they touch.

    Args:
        count: samples of an epoch.
        batch_size: samples of a batch.
        drop_last: leave out the incomplete last batch.
        start: batches of the process that are left out.
        rank: batch k is the process's if ``k % size == rank``.
        size: number of processes.
    """

    def __init__(self, count: int, batch_size: int, drop_last: bool, start: int, rank: int, size: int) -> None:
        batches = number_of_batches(count, batch_size, drop_last)
        self._end = batches * batch_size if drop_last else count
        if size == 1:
            first = start * batch_size
            self._starts, self._length = range(first, self._end, _CHUNK), _CHUNK
        else:
            stride = size * batch_size
            self._starts = range((rank + start * size) * batch_size, batches * batch_size, stride)
            self._length = batch_size

    @property
    def samples(self) -> int:
        """How many samples these are."""
        if not self._starts:
            return 0
        missing = self._starts[-1] + self._length - self._end
        return len(self._starts) * self._length - max(missing, 0)

    def __iter__(self) -> Iterator[range]:
        return (range(first, min(first + self._length, self._end)) for first in self._starts)


def number_of_batches(count: int, batch_size: int, drop_last: bool) -> int:
    """Return the batches of so many samples."""
    return count // batch_size if drop_last else -(-count // batch_size)
