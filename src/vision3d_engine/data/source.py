"""A loader as the engine reads it: any epoch, from any batch on."""

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple

import torch

from vision3d_engine.core.errors import DataError
from vision3d_engine.core.seeding import StepSeeds
from vision3d_engine.data.dataloader import sampler_of, taken_over
from vision3d_engine.data.samples import announce_epoch

Place = tuple[int, int]
"""An epoch, or round, of the data and the number of a batch in it, both counted from 1."""


_CPU = torch.device("cpu")


class Begun(NamedTuple):
    """Where an endless stream began, and how far it is.

    Attributes:
        epoch: the first epoch of the data.
        taken: batches that each process has taken since.
        place: epoch and batch of the last one that this process took, for loaders that only it can count.
    """

    epoch: int
    taken: int
    place: Place


def length_of(loader: Any) -> int | None:
    """Return the number of batches of a loader, or None when it does not know."""
    try:
        return len(loader)
    except TypeError:
        return None


class Source:
    """Reads a user's loader, from any epoch and batch on.

    How it begins in the middle of an epoch depends on what the loader is:

    - made by `build_dataloader`, or a plain DataLoader with a standard sampler, which is taken over: by position,
      without loading anything;
    - with ``state_dict`` and ``load_state_dict`` (torchdata's StatefulDataLoader): by its own state;
    - anything else: by reading and skipping, with the same seeds before each batch as the first time.

    Args:
        loader: what the user registered.
        device: where steps run; its generator is seeded before each batch that is read in order.
    """

    def __init__(self, loader: Any, device: torch.device = _CPU) -> None:
        self._device = device
        self.registered = loader
        self._loader = taken_over(loader)
        self._sampler = sampler_of(self._loader)
        self._state: Any = None

    @property
    def loader(self) -> Any:
        """The loader that is read: what the user registered, or what has taken it over."""
        return self._loader

    @property
    def is_positioned(self) -> bool:
        """Whether batches are addressed by position. If not, what a step draws is seeded before its batch is read."""
        return self._sampler is not None

    def samples_per_step(self, processes: int) -> int | None:
        """Return the samples of one batch of all processes, None when not known."""
        batch_size = getattr(self._loader, "batch_size", None)
        return batch_size * processes if isinstance(batch_size, int) else None

    @property
    def is_stateful(self) -> bool:
        """Whether the loader saves its own position."""
        return self._sampler is None and all(hasattr(self._loader, name) for name in ("state_dict", "load_state_dict"))

    @property
    def length(self) -> int | None:
        """Batches of an epoch on this process, None when not known."""
        return length_of(self._loader)

    @property
    def note(self) -> str | None:
        """One line on what a resume in mid-epoch can promise, or None when it is exact without a condition."""
        name = type(self.registered).__name__
        if self._sampler is not None:
            own = getattr(self._sampler, "sampler", None)
            return None if own is None or hasattr(own, "__len__") else _UNSIZED.format(type(own).__name__)
        return (_STATEFUL if self.is_stateful else _SKIPPED).format(name)

    def fingerprint(self, processes: int) -> dict[str, int | None]:
        """Return what must not change between a run and its resume: samples and global batch."""
        batch_size = getattr(self._loader, "batch_size", None)
        samples = length_of(getattr(self._loader, "dataset", None))
        batches = self.length if samples is None else None
        return {"samples": samples, "batches": batches, "global_batch": batch_size and batch_size * processes}

    def batches(
        self, base: int, epoch: int, start: int = 0, rank: int = 0, shift: int = 0
    ) -> Iterator[tuple[Place, Any]]:
        """Yield the batches of an epoch, from number ``start`` (counted from 0) on, each with its place.

        Args:
            base: seed of the epoch; the same on all processes.
            epoch: number of the epoch, for samplers and data sets.
            start: batches that are left out.
            rank: number of this process, which loaders that are read in order draw differently on.
            shift: lets the batches of an epoch begin at another process.
        """
        if self._sampler is not None:
            self._sampler.begin(base, epoch, start, shift)
            stream: Iterator[Any] = iter(self._loader)
        else:
            stream = self._foreign_stream(base, epoch, start, rank)
        for number, batch in enumerate(stream, start=start + 1):
            yield (epoch, number), batch

    def stream(self, base_of: Callable[[int], int], begun: Begun, rank: int, size: int) -> Iterator[tuple[Place, Any]]:
        """Yield batches without end, one epoch after the other.

        The stream of n processes is that of one: its batch i goes to process ``i % n``, also across the ends of epochs.

        Args:
            base_of: returns the seed of an epoch of the data.
            begun: where the stream began, and how far it is.
            rank: number of this process.
            size: number of processes.

        Raises:
            DataError: when an epoch has no batch.
        """
        total = getattr(self._sampler, "batches_of_all", None)
        if total is None:
            return self._rounds(base_of, *begun.place, rank)
        return self._shared_rounds(base_of, begun, rank, size, total)

    def _rounds(self, base_of: Callable[[int], int], epoch: int, start: int, rank: int) -> Iterator[tuple[Place, Any]]:
        """Yield the rest of an epoch of this process's own batches, then one epoch after the other."""
        while True:
            place = (epoch, start)
            for place, batch in self.batches(base_of(epoch), epoch, start, rank):
                yield place, batch
            if place == (epoch, 0):
                raise DataError(_NO_BATCH)
            epoch, start = epoch + 1, 0

    def _shared_rounds(
        self, base_of: Callable[[int], int], begun: Begun, rank: int, size: int, total: int
    ) -> Iterator[tuple[Place, Any]]:
        """Yield this process's batches of the stream that all share; where it goes on is plain arithmetic."""
        if total == 0:
            raise DataError(_NO_BATCH)
        past, ahead = divmod(begun.taken * size + rank, total)
        while True:
            shift = past * total % size
            start = len(range((rank - shift) % size, ahead, size))
            epoch = begun.epoch + past
            yield from self.batches(base_of(epoch), epoch, start, rank, shift)
            past, ahead = past + 1, 0

    def _foreign_stream(self, base: int, epoch: int, start: int, rank: int) -> Iterator[Any]:
        """Yield the batches of a loader that does not know positions."""
        self._announce(epoch)
        begun = 0
        if self._state is not None:
            self._loader.load_state_dict(self._state)
            self._state, begun = None, start
        seeds = StepSeeds(base ^ (rank + 1), self._device)
        seeds.seed(begun)
        return islice(_seeded(iter(self._loader), seeds, begun), start - begun, None)

    def _announce(self, epoch: int) -> None:
        """Tell samplers and data set which epoch comes."""
        for name in ("sampler", "batch_sampler", "dataset"):
            announce_epoch(getattr(self._loader, name, None), epoch)

    def state_dict(self) -> Any:
        """Return the state of a loader that saves its own, else None."""
        return self._loader.state_dict() if self.is_stateful else None

    def load_state_dict(self, state: Any) -> None:
        """Let the next epoch begin where the state says."""
        self._state = state if self.is_stateful else None


def _seeded(stream: Iterator[Any], seeds: StepSeeds, number: int) -> Iterator[Any]:
    """Seed before each batch is fetched, since data sets without workers draw from the generators of the step.

    ``number`` batches are behind the stream.
    """
    while True:
        number += 1
        seeds.seed(number)
        try:
            batch = next(stream)
        except StopIteration:
            return
        yield batch


_NO_BATCH = "the training loader yields no batch; check the data set, and drop_last with few samples"
_STATEFUL = "resume of {}: by its own state_dict(); as exact as that is"
_SKIPPED = (
    "resume of {}: by reading and skipping; exact if it yields the same batches in each run and draws only from the "
    "global generators of torch, numpy and python, with the same number of workers. build_dataloader needs no such ifs"
)
_UNSIZED = "resume with the sampler {}: it has no length, so it is read as it goes; exact if it draws from no generator"


def describe_changes(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """Return one line for each part of the data that differs between a checkpoint and this run."""
    changed = [key for key in current if key in saved and saved[key] != current[key]]
    return [f"{key} was {saved[key]}, is {current[key]}" for key in changed]
