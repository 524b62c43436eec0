"""Find out whether a data set gives the same sample for the same random numbers."""

from collections.abc import Iterator, Sized
from typing import Any, cast

from torch.utils.data import DataLoader, Dataset

from vision3d_engine.core.compare import differences
from vision3d_engine.core.errors import DataError
from vision3d_engine.core.seeding import derived_seed
from vision3d_engine.data.order import Permutation
from vision3d_engine.data.samples import SeededDataset, Ticket


def check_determinism(dataset: Dataset, count: int = 8, seed: int = 0) -> None:
    """Load some samples twice, the second time in another order, and once more in another process, and compare them.

    What differs would differ between a run and its resume: a generator of a library's own (give it `sample_seed`), a
    cache that is filled as samples come, the time of day.

    Args:
        dataset: a map-style data set.
        count: how many samples, chosen at random.
        seed: chooses them, and the numbers that they draw.

    Raises:
        DataError: naming sample and key.
    """
    size = len(cast("Sized", dataset))
    indices = Permutation(size, seed).at(range(min(count, size)))
    base = derived_seed(seed, "check")
    tickets = [Ticket(index, position, 1, base) for position, index in enumerate(indices)]
    seeded = SeededDataset(dataset)
    first = [seeded[ticket] for ticket in tickets]
    again = [seeded[ticket] for ticket in reversed(tickets)][::-1]
    _compare(tickets, first, again, "loaded again in another order")
    _compare(tickets, first, list(_in_worker(seeded, tickets)), "loaded in another process")


def _in_worker(dataset: SeededDataset, tickets: list[Ticket]) -> Iterator[Any]:
    loader = DataLoader(dataset, batch_size=None, sampler=tickets, num_workers=1, collate_fn=_as_it_is)  # type: ignore[arg-type]
    return iter(loader)


def _as_it_is(sample: Any) -> Any:
    return sample


def _compare(tickets: list[Ticket], first: list[Any], second: list[Any], how: str) -> None:
    for ticket, a, b in zip(tickets, first, second, strict=True):
        if lines := list(differences(a, b)):
            message = (
                f"sample {ticket.index} is another one when {how}: {'; '.join(lines[:5])}. It must depend on its index "
                "and on torch's, numpy's and python's global generators alone; give other generators sample_seed()"
            )
            raise DataError(message)
