"""Named numbers of all processes, in one exchange: their sums, or those of the main process."""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
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
        present = {key: triple for key, slot in self._slots.items() if (triple := triples[slot]) is not None}
        return {key: present[key] for key in (*sums, *present) if key in present}

    def _exchange(self, sums: Sums) -> tuple[float, list[tuple[float, float, float] | None]]:
        """Return how many names are unknown, and the triple of every known one over all; None if no process has it."""
        known = [key for key in sums if key in self._slots]
        own = [float(len(sums) - len(known))] + [0.0] * (4 * len(self._slots))
        for key in known:
            place = 1 + 4 * self._slots[key]
            own[place : place + 4] = (1.0, *sums[key])  # that it is there, as its weight may be zero
        unknown, *numbers = self._reduce(torch.tensor(own, dtype=torch.float64)).tolist()
        quadruples = zip(*(numbers[start::4] for start in range(4)), strict=True)
        return unknown, [tuple(triple) if is_there else None for is_there, *triple in quadruples]

    def _learn(self, sums: Sums) -> None:
        """Give every name of any process a slot, the same on all."""
        for keys in self._gather([key for key in sums if key not in self._slots]):
            for key in keys:
                self._slots.setdefault(key, len(self._slots))


class MainNumbers:
    """Returns the main process's numbers on all processes, so that whatever follows from them is the same everywhere.

    A number that another process has otherwise, or the main one has not, is warned about, once a name. One that only
    the main process has is what gathering on it is for.

    Args:
        gather: returns the picklable values of all processes in rank order.
        warn: says what was found.
    """

    def __init__(self, gather: Callable[[Any], list[Any]], warn: Callable[[str], object]) -> None:
        self._gather, self._warn = gather, warn
        self._said: set[str] = set()

    def __call__(self, numbers: Mapping[str, float], source: str) -> dict[str, float]:
        """Return the main process's numbers; to be called by all processes.

        Args:
            numbers: those of this process.
            source: where they come from, for the warning.
        """
        found: list[dict[str, float]] = self._gather(dict(numbers))
        for key in dict.fromkeys(key for each in found for key in each):
            values = [each.get(key) for each in found if key in each or each is found[0]]
            if key not in self._said and any(not _are_same(value, values[0]) for value in values):
                self._said.add(key)
                self._warn(_difference(source, key, [each.get(key, "none") for each in found]))
        return found[0]


def _are_same(a: float | None, b: float | None) -> bool:
    return a == b or (a is not None and b is not None and math.isnan(a) and math.isnan(b))


def _difference(source: str, key: str, values: Sequence[Any]) -> str:
    fate = "that of the main process counts, on all" if values[0] != "none" else "it is left out, since rank 0 decides"
    return (
        f"'{key}' of {source} differs between the processes ({by_rank(values)}): {fate}. Make it of what all have: "
        "return it from val_step, whose means are over all processes, or compute it on the main one from "
        "gather_records()"
    )


def by_rank(values: Sequence[Hashable]) -> str:
    """Return in words which processes have which value."""
    ranks: dict[Hashable, list[str]] = {}
    for rank, value in enumerate(values):
        ranks.setdefault(value, []).append(str(rank))
    return "; ".join(f"rank{'s'[: len(who) > 1]} {', '.join(who)}: {value}" for value, who in ranks.items())
