"""The permutation of an epoch as a function: which sample stands at which position, without a list of all."""

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

from vision3d_engine.core.seeding import seed_at

_ROUNDS = 8
# Up to here a permutation is sorted once, in milliseconds; beyond, each position is computed by itself.
_MAX_SORTED = 2**16


class Permutation:
    """A random order of ``count`` samples that is a function of the seed alone.

    Large ones are computed position by position by a Feistel network with cycle walking (Black and Rogaway,
    "Ciphers with arbitrary finite domains", 2002), so an epoch over 10^9 samples begins at any position at once and
    needs no memory. The arithmetic is our own, so that it outlives the versions of torch and numpy.

    Args:
        count: number of samples.
        seed: what the permutation is a function of.
    """

    def __init__(self, count: int, seed: int) -> None:
        self._count = count
        self._keys = [np.uint64(seed_at(seed, number)) for number in range(_ROUNDS)]
        half_bits = max((count - 1).bit_length() + 1, 2) // 2
        self._shift = np.uint64(half_bits)
        self._mask = np.uint64(2**half_bits - 1)
        self._sorted = self._sort() if count <= _MAX_SORTED else None

    def __len__(self) -> int:
        return self._count

    def at(self, positions: range) -> list[int]:
        """Return the samples at a few thousand positions; about 0.2 us each."""
        places = np.arange(positions.start, positions.stop, positions.step, dtype=np.uint64)
        if self._sorted is not None:
            return self._sorted[places].tolist()
        found = self._encrypt(places)
        while (outside := found >= self._count).any():
            found[outside] = self._encrypt(found[outside])
        return found.tolist()

    def _sort(self) -> np.ndarray:
        """Return all samples in the order of their hashes."""
        return np.argsort(_mixed(np.arange(self._count, dtype=np.uint64) + self._keys[0]), kind="stable")

    def _encrypt(self, places: np.ndarray) -> np.ndarray:
        """Permute the numbers below ``4 ** half_bits``."""
        left, right = places >> self._shift, places & self._mask
        for key in self._keys:
            left, right = right, left ^ (_mixed(right + key) & self._mask)
        return (left << self._shift) | right


class Passes:
    """Several passes over a set one after the other, each in an order of its own.

    Args:
        count: number of samples of a pass.
        passes: how many there are.
        order_of: returns the order of a pass, given its number.
    """

    def __init__(self, count: int, passes: int, order_of: Callable[[int], "Permutation | Sequence[int]"]) -> None:
        self._count, self._passes = count, passes
        self._order_of = lru_cache(maxsize=2)(order_of)

    def __len__(self) -> int:
        return self._count * self._passes

    def at(self, positions: range) -> list[int]:
        """Return the samples at neighbouring positions."""
        found: list[int] = []
        position = positions.start
        while position < positions.stop:
            number, place = divmod(position, self._count)
            stop = min(self._count, place + positions.stop - position)
            order = self._order_of(number)
            found += order.at(range(place, stop)) if isinstance(order, Permutation) else order[place:stop]
            position += stop - place
        return found


def _mixed(values: np.ndarray) -> np.ndarray:
    """Hash 64-bit numbers (splitmix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
