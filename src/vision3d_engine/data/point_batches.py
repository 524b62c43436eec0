"""Batches by number of points: which samples are read together."""

import warnings
from bisect import bisect_left
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, Sampler

from vision3d_engine.core.errors import ConfigError, DataError
from vision3d_engine.data.measured_lengths import Measuring, measured_lengths
from vision3d_engine.data.stated_lengths import stated_lengths

_SHARES = range(2, 17)


class PointBatchSampler(Sampler[list[int]]):
    """Batches of samples whose points together stay within a bound; every sample once, as many batches in each epoch.

    In order, a batch ends where the next sample would go over a bound. Shuffled, samples are sorted by length and cut
    into strata of as many samples as there are batches; a batch gets one sample of each stratum, drawn anew for every
    epoch from torch's global generator. The largest samples of all strata stay within the bound, so any draw does, and
    batches differ by at most the points of one sample. Outliers would leave the others little room: as many of the
    largest samples have a batch of their own as makes the fewest batches.

    Attributes:
        batch_points: most points of a batch.
        most_samples: most samples of a batch; not ``batch_size``, since a batch may have fewer.
        cloud_lengths: the lengths, if they are the points of clouds; else None.

    Args:
        lengths: points of each sample.
        batch_points: most points of a batch; a sample with more is alone in its batch, which is said in a warning.
        batch_size: most samples of a batch.
        shuffle: draw other batches, in another order, for every epoch.
        are_of_clouds: lengths count the points of clouds, as `collate_packed` finds them, and nothing of the script's.
    """

    def __init__(
        self, lengths: np.ndarray, batch_points: int, batch_size: int, *, shuffle: bool, are_of_clouds: bool = True
    ) -> None:
        self.batch_points = batch_points
        self.most_samples = batch_size
        self.cloud_lengths = lengths if are_of_clouds else None
        self._in_order = None if shuffle else list(_in_order(lengths.tolist(), batch_points, batch_size))
        self._descending = np.argsort(-lengths, kind="stable")
        self._alone, self._count = self._divided(lengths[self._descending]) if shuffle else (0, 0)
        if number := int((lengths > batch_points).sum()):
            largest = int(lengths.max())
            message = f"{number} samples have more than batch_points={batch_points} points, the largest {largest}"
            warnings.warn(f"{message}; each is alone in its batch", stacklevel=3)

    def __len__(self) -> int:
        return self._alone + self._count if self._in_order is None else len(self._in_order)

    def __iter__(self) -> Iterator[list[int]]:
        if self._in_order is not None:
            return iter(self._in_order)
        batches = [[index] for index in self._descending[: self._alone].tolist()] + self._drawn()
        return iter([batches[number] for number in torch.randperm(len(batches)).tolist()])

    def _drawn(self) -> list[list[int]]:
        """Return batches with one sample of each stratum; the last stratum may have fewer than there are batches."""
        rest = self._descending[self._alone :]
        batches: list[list[int]] = [[] for _ in range(self._count)]
        for start in range(0, len(rest), self._count or 1):
            places = torch.randperm(self._count).tolist()
            for place, index in zip(places, rest[start : start + self._count].tolist(), strict=False):
                batches[place].append(index)
        return batches

    def _divided(self, lengths: np.ndarray) -> tuple[int, int]:
        """Return how many of the largest samples are alone, and how many batches the others make."""
        too_large = {int((lengths * share > self.batch_points).sum()) for share in _SHARES}
        divisions = [(alone, self._fewest(lengths[alone:])) for alone in sorted(too_large)]
        return min(divisions, key=sum)

    def _fewest(self, lengths: np.ndarray) -> int:
        """Return the fewest strata-wide batches that keep both bounds, of lengths that fall."""

        def fits(count: int) -> bool:
            return -(-len(lengths) // count) <= self.most_samples and lengths[::count].sum() <= self.batch_points

        return bisect_left(range(1, len(lengths) + 1), True, key=fits) + 1 if len(lengths) else 0


def _in_order(lengths: list[int], batch_points: int, batch_size: int) -> Iterator[list[int]]:
    """Yield batches of neighbours."""
    batch, points = [], 0
    for index, length in enumerate(lengths):
        if batch and (points + length > batch_points or len(batch) == batch_size):
            yield batch
            batch, points = [], 0
        batch.append(index)
        points += length
    if batch:
        yield batch


def point_batches(
    dataset: Any, batch_points: int, batch_size: int, *, shuffle: bool, how: Measuring, **others: Any
) -> PointBatchSampler:
    """Return the batches of a data set that states its lengths, or whose samples are measured once.

    The bound holds for lengths that are stated or measured: an augmentation that adds points may exceed it, which
    trainers and testers say once of batches of `collate_packed`. Lengths are read once, whatever ``set_epoch`` changes.

    Args:
        dataset: with ``lengths``, the points of each sample, or a method ``lengths()`` that returns them.
        batch_points: most points of a batch.
        batch_size: most samples of a batch.
        shuffle: draw other batches for every epoch.
        how: how lengths are measured that the data set does not state.
        others: options of the loader, by name; those that choose samples in another way must be off.
    """
    if given := [name for name in ("sampler", "drop_last", "batch_sampler") if others.get(name) not in (None, False)]:
        message = f"batch_points={batch_points} chooses the samples of each batch, and leaves none out"
        raise ConfigError(f"{message}; it does not go with {', '.join(given)}. Leave out one of them")
    if batch_points < 1 or (batch_size or 1) < 2:  # noqa: PLR2004
        message = f"batch_points={batch_points} with batch_size={batch_size}: batch_size is the most samples of a batch"
        raise ConfigError(f"{message} and must be at least 2, batch_points at least 1. Say batch_size, such as 64")
    options = {"shuffle": shuffle, "are_of_clouds": how.points_of is None}
    return PointBatchSampler(_lengths_of(dataset, how), batch_points, batch_size, **options)


def _lengths_of(dataset: Any, how: Measuring) -> np.ndarray:
    """Return the points of each sample, as the data set states them; else they are measured."""
    if isinstance(dataset, IterableDataset):
        message = f"batch_points needs samples that are loaded by index, and {type(dataset).__name__} is iterable"
        raise DataError(f"{message}. Let it yield samples of a bounded size, or whole batches with batch_size=None")
    stated = stated_lengths(dataset) if how.points_of is None else None
    return measured_lengths(dataset, how) if stated is None else stated
