"""Sums of named numbers over all processes, in one exchange."""

from collections.abc import Callable, Sequence
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
        flag, *numbers = self._exchange(sums)
        if flag > 0:
            self._learn(sums)
            _, *numbers = self._exchange(sums)
        triples = {key: _triple(numbers, slot) for key, slot in self._slots.items()}
        present = {key: triple for key, triple in triples.items() if triple[0] > 0}
        return {key: present[key] for key in (*sums, *present) if key in present}

    def _exchange(self, sums: Sums) -> list[float]:
        """Add up one vector: the flag, and three numbers for every known name."""
        vector = torch.zeros(1 + 3 * len(self._slots), dtype=torch.float64)
        known = [key for key in sums if key in self._slots]
        vector[0] = len(sums) - len(known)
        places = [1 + 3 * self._slots[key] + i for key in known for i in range(3)]
        vector[places] = torch.tensor([number for key in known for number in sums[key]], dtype=torch.float64)
        return self._reduce(vector).tolist()

    def _learn(self, sums: Sums) -> None:
        """Give every name of any process a slot, the same on all."""
        for keys in self._gather([key for key in sums if key not in self._slots]):
            for key in keys:
                self._slots.setdefault(key, len(self._slots))


def _triple(numbers: Sequence[float], slot: int) -> tuple[float, float, float]:
    count, total, squares = numbers[3 * slot : 3 * slot + 3]
    return count, total, squares
