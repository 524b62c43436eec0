"""Sums of named numbers over all processes, in one exchange."""

from collections.abc import Callable
from typing import Any

import torch

# Count, sum and sum of squares of numbers, by name.
Sums = dict[str, tuple[float, float, float]]


class NamedSums:
    """Adds up triples by name over all processes: one all-reduce, once every process knows every name.

    Names may differ between processes and from call to call. Slot 0 of what is exchanged tells whether any process has
    a name that is new to the others; only then names are gathered, and the sums are exchanged again.

    Args:
        reduce: returns the sum of a float64 vector over all processes.
        gather: returns the picklable values of all processes in rank order.
    """

    def __init__(self, reduce: Callable[[torch.Tensor], torch.Tensor], gather: Callable[[Any], list[Any]]) -> None:
        self._reduce = reduce
        self._gather = gather
        self._slots: dict[str, int] = {}

    def __call__(self, sums: Sums) -> Sums:
        """Return the sums over all processes, this one's names first; to be called by all processes."""
        unknown, triples = self._exchange(sums)
        if unknown:
            self._learn(sums)
            _, triples = self._exchange(sums)
        present = {key: triples[slot] for key, slot in self._slots.items() if triples[slot][0] > 0}
        return {key: present[key] for key in (*sums, *present) if key in present}

    def _exchange(self, sums: Sums) -> tuple[float, list[tuple[float, float, float]]]:
        """Return how many names are unknown, and the triple of every known one, over all processes."""
        known = [key for key in sums if key in self._slots]
        own = [float(len(sums) - len(known))] + [0.0] * (3 * len(self._slots))
        for key in known:
            place = 1 + 3 * self._slots[key]
            own[place : place + 3] = sums[key]
        unknown, *numbers = self._reduce(torch.tensor(own, dtype=torch.float64)).tolist()
        return unknown, list(zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True))

    def _learn(self, sums: Sums) -> None:
        """Give every name of any process a slot, the same on all."""
        for keys in self._gather([key for key in sums if key not in self._slots]):
            for key in keys:
                self._slots.setdefault(key, len(self._slots))
