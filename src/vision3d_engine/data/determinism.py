"""Find out whether a data set gives the same sample for the same random numbers."""

from collections.abc import Iterator, Sized
from typing import Any, cast

from torch.utils.data import DataLoader, Dataset

from vision3d_engine.core.compare import differences
from vision3d_engine.core.errors import DataError
from vision3d_engine.core.seeding import derived_seed
from vision3d_engine.data.permutation import Permutation
from vision3d_engine.data.sample_seeds import SampleIndex, SeededDataset


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
    samples = [SampleIndex(index, position, 1, base) for position, index in enumerate(indices)]
    seeded = SeededDataset(dataset)
    first = [seeded[sample] for sample in samples]
    again = [seeded[sample] for sample in reversed(samples)][::-1]
    _compare(samples, first, again, "loaded again in another order")
    _compare(samples, first, list(_in_worker(seeded, samples)), "loaded in another process")


def _in_worker(dataset: SeededDataset, samples: list[SampleIndex]) -> Iterator[Any]:
    loader = DataLoader(dataset, batch_size=None, sampler=samples, num_workers=1, collate_fn=_as_it_is)  # type: ignore[arg-type]
    return iter(loader)


def _as_it_is(sample: Any) -> Any:
    return sample


def _compare(samples: list[SampleIndex], first: list[Any], second: list[Any], how: str) -> None:
    for sample, a, b in zip(samples, first, second, strict=True):
        if lines := list(differences(a, b)):
            message = (
                f"sample {sample.index} is another one when {how}: {'; '.join(lines[:5])}. It must depend on its index "
                "and on torch's, numpy's and python's global generators alone; give other generators sample_seed()"
            )
            raise DataError(message)
