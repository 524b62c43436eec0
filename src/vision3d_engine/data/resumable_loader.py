"""The one answer about a user's loader: its length, its position, its epochs, its endless stream."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, count, islice, repeat
from typing import Any, NamedTuple

import torch

from vision3d_engine.core.errors import DataError, RegistrationError
from vision3d_engine.core.seeding import StepSeeds
from vision3d_engine.data.dataloader import adopted, copied, sampler_of
from vision3d_engine.data.sample_seeds import SeededDataset, announce_epoch
from vision3d_engine.data.workers import opened

Place = tuple[int, int]
"""An epoch of the data and the number of a batch in it, both counted from 1."""

_CPU = torch.device("cpu")


class StreamPosition(NamedTuple):
    """Where an endless stream started, and how far it is.

    Attributes:
        first_epoch: the first epoch of the data.
        taken: batches that each process has taken since.
        place: epoch and batch of the last one that this process took, for loaders that only it can count.
    """

    first_epoch: int
    taken: int
    place: Place


def length_of(loader: Any) -> int | None:
    """Return the number of batches of a loader, or None when it does not know."""
    try:
        return len(loader)
    except TypeError:
        return None


class ResumableLoader:
    """Reads a user's loader, from any epoch and batch on.

    How it starts in the middle of an epoch depends on what the loader is:

    - made by `build_dataloader`, or a plain DataLoader with a standard sampler, which is adopted: by position, without
      loading anything;
    - with ``state_dict`` and ``load_state_dict`` (torchdata's StatefulDataLoader): by its own state;
    - anything else: by reading and skipping, with the same seeds before each batch as the first time.

    Args:
        registered: what the user registered.
        device: where steps run; its generator is seeded before each batch that is read in order.
        rank: number of this process, which loaders that are read in order draw differently on.
        size: number of processes.
        is_shared: give it an iterator and workers of its own, where that is possible.

    Attributes:
        loader: the loader that is read: what was registered, or the one that was adopted in its place.
    """

    def __init__(
        self, registered: Any, device: torch.device = _CPU, rank: int = 0, size: int = 1, is_shared: bool = False
    ) -> None:
        self.registered = registered
        self.loader = copied(adopted(registered)) if is_shared else adopted(registered)
        self._device = device
        self._rank, self._size = rank, size
        self._sampler = sampler_of(self.loader)
        self._state: Any = None
        self._announced: int | None = None
        self._stream: _Stream | None = None

    @property
    def is_positioned(self) -> bool:
        """Whether batches are addressed by position. If not, what a step draws is seeded before its batch is read."""
        return self._sampler is not None

    @property
    def is_stateful(self) -> bool:
        """Whether the loader saves its own position."""
        return self._sampler is None and all(hasattr(self.loader, name) for name in ("state_dict", "load_state_dict"))

    @property
    def length(self) -> int | None:
        """Batches of an epoch on this process, None when not known; `announce` may change it."""
        return length_of(self.loader)

    @property
    def longest_length(self) -> int | None:
        """Batches of an epoch on the process that has most of them, None when not known."""
        total = getattr(self._sampler, "total_batches", None)
        return self.length if total is None else -(-total // self._size)

    @property
    def samples_per_step(self) -> int | None:
        """Samples of one batch of all processes, None when not known."""
        batch_size = getattr(self.loader, "batch_size", None)
        return batch_size * self._size if isinstance(batch_size, int) else None

    @property
    def note(self) -> str | None:
        """One line on what a resume in mid-epoch can promise, or None when it is exact without a condition."""
        name = type(self.registered).__name__
        if self._sampler is not None:
            own = getattr(self._sampler, "sampler", None)
            return None if own is None or hasattr(own, "__len__") else _UNSIZED.format(type(own).__name__)
        return (_STATEFUL if self.is_stateful else _SKIPPED).format(name)

    def fingerprint(self) -> dict[str, int | None]:
        """Return what must not change between a run and its resume: samples and global batch."""
        batch_size = getattr(self.loader, "batch_size", None)
        samples = length_of(getattr(self.loader, "dataset", None))
        batches = self.length if samples is None else None
        return {"samples": samples, "batches": batches, "global_batch": batch_size and batch_size * self._size}

    # ------------------------------------------------------------------------------------------- an epoch

    def announce(self, epoch: int) -> None:
        """Tell samplers and data set which epoch comes, here and not only in the workers, since it may change lengths.

        To be called before `length` is asked for; else it is done when the first batch is.
        """
        self._announced = epoch
        for name in ("sampler", "batch_sampler", "dataset"):
            part = getattr(self.loader, name, None)
            part.announce(epoch) if isinstance(part, SeededDataset) else announce_epoch(part, epoch)

    def batches(self, seed: int, epoch: int, start: int = 0, shift: int = 0) -> Iterator[tuple[Place, Any]]:
        """Return the batches of an epoch, from number ``start`` (counted from 0) on, each with its place.

        The loader is opened when the first one is asked for.

        Args:
            seed: seed of the epoch; the same on all processes.
            epoch: number of the epoch, for samplers and data sets.
            start: batches that are left out.
            shift: lets the batches of an epoch start at another process.
        """
        return chain.from_iterable(map(self._opened, [(seed, epoch, start, shift)]))

    def _opened(self, where: tuple[int, int, int, int]) -> Iterable[tuple[Place, Any]]:
        seed, epoch, start, shift = where
        places = zip(repeat(epoch), count(start + 1), strict=False)
        announced, self._announced = self._announced, None
        if self._sampler is None:
            if announced != epoch:
                self.announce(epoch)
                self._announced = None
            return zip(places, self._read_in_order(seed, start), strict=False)
        self._sampler.start_at(seed, epoch, start, shift)
        return zip(places, opened(self.loader), strict=False)

    def _read_in_order(self, seed: int, start: int) -> Iterator[Any]:
        """Yield the batches of a loader that does not know positions.

        Seeds are set before each is fetched, since data sets without workers draw from the generators of the step.
        """
        seeds, number = StepSeeds(seed ^ (self._rank + 1), self._device), 0
        if self._state is not None:
            self.loader.load_state_dict(self._state)
            self._state, number = None, start
        seeds.seed(number)
        stream = opened(self.loader)
        return islice(_seeded(stream, seeds, number), start - number, None)

    # ------------------------------------------------------------------------------------------- an endless stream

    def stream(self, seed_of: Callable[[int], int], position: StreamPosition) -> Iterator[tuple[Place, Any]]:
        """Return batches without end, one epoch after the other, from a position on.

        The stream of n processes is that of one: its batch i goes to process ``i % n``, also across the ends of epochs.
        An open stream that stands there already goes on; else, as after a load or an error, a new one is opened.

        Args:
            seed_of: returns the seed of an epoch of the data.
            position: where the stream started, and how far it is.

        Raises:
            DataError: when an epoch has no batch.
        """
        if self._stream is None or self._stream.position != position:
            self._stream = _Stream(self._epochs(seed_of, position), position)
        return self._stream

    def _epochs(self, seed_of: Callable[[int], int], position: StreamPosition) -> Iterator[tuple[Place, Any]]:
        if getattr(self._sampler, "total_batches", None) is None:
            return self._own_epochs(seed_of, *position.place)
        return self._shared_epochs(seed_of, position)

    def _own_epochs(self, seed_of: Callable[[int], int], epoch: int, start: int) -> Iterator[tuple[Place, Any]]:
        """Yield the rest of an epoch of this process's own batches, then one epoch after the other."""
        while True:
            place = (epoch, start)
            for place, batch in self.batches(seed_of(epoch), epoch, start):
                yield place, batch
            if place == (epoch, 0):
                raise DataError(_NO_BATCH)
            epoch, start = epoch + 1, 0

    def _shared_epochs(self, seed_of: Callable[[int], int], position: StreamPosition) -> Iterator[tuple[Place, Any]]:
        """Yield this process's batches of the stream that all share; where it goes on is plain arithmetic."""
        rank, size = self._rank, self._size
        ahead, before, epoch = position.taken * size + rank, 0, position.first_epoch
        while True:
            self.announce(epoch)
            if not (total := self._sampler.total_batches):  # pyright: ignore[reportOptionalMemberAccess]
                raise DataError(_NO_BATCH)
            if ahead < total:
                start = len(range((rank - before) % size, ahead, size))
                yield from self.batches(seed_of(epoch), epoch, start, before % size)
                ahead = total
            ahead, before, epoch = ahead - total, before + total, epoch + 1

    # ------------------------------------------------------------------------------------------- its own state

    def state_dict(self) -> Any:
        """Return the state of a loader that saves its own, else None."""
        return self.loader.state_dict() if self.is_stateful else None

    def load_state_dict(self, state: Any) -> None:
        """Let the next epoch start where the state says."""
        self._state = state if self.is_stateful else None
        self._stream = None


class _Stream:
    """An endless stream that knows where it stands; after an error it stands nowhere."""

    def __init__(self, batches: Iterator[tuple[Place, Any]], position: StreamPosition) -> None:
        self._batches = batches
        self._first_epoch, self._place = position.first_epoch, position.place
        self._taken: int | None = position.taken

    @property
    def position(self) -> StreamPosition | None:
        """Where it stands; None while it reads a batch, and for good when that fails."""
        return None if self._taken is None else StreamPosition(self._first_epoch, self._taken, self._place)

    def __iter__(self) -> Iterator[tuple[Place, Any]]:
        return self

    def __next__(self) -> tuple[Place, Any]:
        taken, self._taken = self._taken, None
        self._place, batch = next(self._batches)
        self._taken = (taken or 0) + 1
        return self._place, batch


class LoaderCache:
    """The loaders of a trainer or tester by what they are for; each is made once, so that its workers are kept.

    Args:
        device: where steps run.
        rank: number of this process.
        size: number of processes.
    """

    def __init__(self, device: torch.device, rank: int, size: int) -> None:
        self._world = (device, rank, size)
        self._loaders: dict[str, ResumableLoader] = {}

    def get(self, purpose: str, registered: Any) -> ResumableLoader:
        """Return the loader for a purpose, such as ``"train"``; one that was exchanged is noticed."""
        found = self._loaders.get(purpose)
        if found is None or found.registered is not registered:
            is_shared = any(other.registered is registered for other in self._loaders.values())
            found = self._loaders[purpose] = ResumableLoader(registered, *self._world, is_shared=is_shared)
        return found

    def clear(self) -> None:
        """Forget all; workers of loaders that nobody else holds end now, and not whenever garbage is collected."""
        for loader in self._loaders.values():
            loader.loader, loader._stream = loader.registered, None  # noqa: SLF001  of this module
        self._loaders.clear()


def refuse_shared_iterator(train_loader: Any, val_loader: Any) -> None:
    """Refuse one loader for training and validation when it has a single iterator that both would move.

    Raises:
        RegistrationError: saying what to do.
    """
    if train_loader is not val_loader or ResumableLoader(train_loader).is_positioned:
        return
    if getattr(train_loader, "persistent_workers", False) or ResumableLoader(train_loader).is_stateful:
        message = (
            f"register_loader got the same {type(train_loader).__name__} for training and validation, which has one "
            "iterator only, so that each would move the other's place. Build two loaders, or use build_dataloader"
        )
        raise RegistrationError(message)


def _seeded(stream: Iterator[Any], seeds: StepSeeds, number: int) -> Iterator[Any]:
    """Seed before each batch is fetched; ``number`` batches are behind the stream."""
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
