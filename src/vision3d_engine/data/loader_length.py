"""How many batches and steps a loader has, for one process and for all."""

from typing import Any

from vision3d_engine.data.dataloader import sampler_of


def length_of(loader: Any) -> int | None:
    """Return the number of batches of a loader, or None when it does not know."""
    try:
        return len(loader)
    except (TypeError, NotImplementedError):
        return None


class LoaderLength:
    """The length of a loader that several processes read.

    Args:
        loader: what is read.
        rank: number of this process.
        size: number of processes.
    """

    def __init__(self, loader: Any, rank: int, size: int) -> None:
        self.loader = loader
        self._rank, self._size = rank, size
        self._sampler = sampler_of(loader)

    @property
    def length(self) -> int | None:
        """Batches of an epoch on this process, None when not known; `announce` may change it."""
        return length_of(self.loader)

    @property
    def total_length(self) -> int | None:
        """Batches of an epoch of all processes together; None unless the engine shares them out."""
        return getattr(self._sampler, "total_batches", None)

    @property
    def longest_length(self) -> int | None:
        """Batches of an epoch on the process that has most of them, None when not known."""
        total = self.total_length
        return self.length if total is None else -(-total // self._size)

    @property
    def is_dealt(self) -> bool:
        """Whether batch k goes to process k modulo their number, so that other processes can go on with the rest."""
        return self.total_length is not None

    def steps(self, first: int) -> int | None:
        """Return the steps of an epoch whose batch 0 goes to process ``first``; those before have none in step 1."""
        length = self._length_at(first)
        return length and length + self._lacks(first)

    def own_batches(self, steps: int, first: int) -> int:
        """Return how many batches this process has had in so many steps of such an epoch."""
        return max(steps - self._lacks(first), 0)

    def _lacks(self, first: int) -> int:
        return int(self.is_dealt and self._rank < first)

    @property
    def samples_per_step(self) -> int | None:
        """Samples of one batch of all processes, None when not known."""
        batch_size = getattr(self.loader, "batch_size", None)
        return batch_size * self._size if isinstance(batch_size, int) else None

    def _length_at(self, shift: int) -> int | None:
        """Return this process's number of batches of an epoch that starts at another process."""
        total = self.total_length
        return self.length if total is None else len(range((self._rank - shift) % self._size, total, self._size))
