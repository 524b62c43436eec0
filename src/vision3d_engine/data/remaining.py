"""The batches of an epoch that are left when some of them are done already."""

from collections.abc import Collection, Iterator
from itertools import chain, count, repeat
from typing import Any

from vision3d_engine.data.dataloader import without
from vision3d_engine.data.endless_stream import Place
from vision3d_engine.data.exact_length import placed
from vision3d_engine.data.resumable_loader import ResumableLoader


class RemainingBatches(ResumableLoader):
    """Reads a loader but for batches of some numbers, which keep their places; see `ResumableLoader`."""

    def remaining(self, seed: int, epoch: int, done: Collection[int]) -> Iterator[tuple[Place, Any]]:
        """Return the batches of an epoch that are not done, each with its place.

        Those that are done are not loaded; a loader that is read in order loads them and lets them go.

        Args:
            seed: seed of the epoch; the same on all processes.
            epoch: number of the epoch.
            done: numbers of this process's batches that are left out, from 0.
        """
        if not done or self._sampler is None:
            return (pair for pair in self.batches(seed, epoch) if pair[0][1] - 1 not in done)
        self.loader = without(self.loader, done)
        numbers = (number + 1 for number in count() if number not in done)
        sizes = (size for number, size in enumerate(self._sizes(0, 0)) if number not in done)
        batches = iter(self._opened((seed, epoch, 0, 0)))
        return placed(batches, epoch, 0, chain(sizes, repeat(1)), numbers)
