"""The one answer about a user's loader: its length, its position, its epochs, its endless stream."""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice, repeat
from typing import Any

import torch

from vision3d_engine.core.errors import DataError
from vision3d_engine.core.seeding import StepSeeds
from vision3d_engine.data.collate import explaining
from vision3d_engine.data.dataloader import adopted, copied
from vision3d_engine.data.endless_stream import EndlessStream, Place, StreamPosition, dealt_epochs
from vision3d_engine.data.exact_length import ExactLength, placed
from vision3d_engine.data.loader_hints import resume_note, sharing_hint
from vision3d_engine.data.loader_length import LoaderLength, length_of
from vision3d_engine.data.point_bound import PointBound
from vision3d_engine.data.sample_seeds import SampleIndex, SeededDataset, announce_epoch
from vision3d_engine.data.workers import opened

Position = tuple[int, int, int, int]
"""Seed of an epoch, its number, batches that are left out, and the process that its first batch goes to."""

_CPU = torch.device("cpu")


class ResumableLoader(LoaderLength):
    """Reads a user's loader, from any epoch and batch on.

    How it starts in the middle of an epoch depends on what the loader is:

    - made by `build_dataloader`, or a plain DataLoader over a map-style data set, which is adopted: by position,
      without loading anything;
    - with ``state_dict`` and ``load_state_dict`` (torchdata's StatefulDataLoader): by its own state;
    - anything else: by reading and skipping, with the same seeds before each batch as the first time.

    Args:
        registered: what the user registered.
        device: where steps run; its generator is seeded before each batch that is read in order.
        rank: number of this process, which loaders that are read in order draw differently on.
        size: number of processes.
        is_shared: give it an iterator and workers of its own, where that is possible.
        name: what it is called in messages.
        counts_samples: whether a batch weighs as many samples as were drawn for it; else each weighs 1.
        say: takes a message and its level.

    Attributes:
        loader: the loader that is read: what was registered, or the one that was adopted in its place.
        knows_sizes: whether it is known of each batch how many samples were drawn for it.
    """

    def __init__(  # noqa: PLR0913  who reads it, and whom to tell
        self,
        registered: Any,
        device: torch.device = _CPU,
        rank: int = 0,
        size: int = 1,
        *,
        is_shared: bool = False,
        name: str = "loader",
        counts_samples: bool = True,
        say: Callable[[str, str], None] = lambda _message, _level: None,
    ) -> None:
        self.registered = registered
        self.name = f"{name} ({type(registered).__name__})"
        super().__init__(copied(adopted(registered)) if is_shared else adopted(registered), rank, size)
        self.counts_samples = counts_samples
        self._device = device
        self.knows_sizes: bool = self._sampler is not None and self._sampler.knows_sizes
        self._state: Any = None
        self._announced: int | None = None
        self._stream: EndlessStream | None = None
        self._openings = 0
        self._position: Position = (0, 0, 0, 0)
        self._most: int | None = None
        self._exact, self._say = ExactLength(self.name, rank, say), say
        self._bound = PointBound(self._sampler, self.name, say)

    @property
    def is_positioned(self) -> bool:
        """Whether batches are addressed by position. If not, what a step draws is seeded before its batch is read."""
        return self._sampler is not None

    @property
    def is_stateful(self) -> bool:
        """Whether the loader saves its own position."""
        return self._sampler is None and all(hasattr(self.loader, name) for name in ("state_dict", "load_state_dict"))

    @property
    def note(self) -> str | None:
        """One line on what a resume in mid-epoch can promise, or None when it is exact without a condition."""
        return resume_note(type(self.registered).__name__, self._sampler, self.is_stateful)

    def tell_who_reads_what(self) -> None:
        """Say it when several processes read the data in another way than `build_dataloader` lets them."""
        if self._size > 1 and (hint := sharing_hint(self.loader, self._sampler)) is not None:
            self._say(f"the {self.name}, read by {self._size} processes: {hint.text}", hint.level)

    def fingerprint(self) -> dict[str, Any]:
        """Return what must not change between a run and its resume: samples, global batch, order."""
        return _fingerprint(self.loader, self._sampler, self._size, self.length)

    # ------------------------------------------------------------------------------------------- an epoch

    def announce(self, epoch: int) -> None:
        """Tell samplers and data set which epoch comes, here and not only in the workers, since it may change lengths.

        To be called before `length` is asked for; else it is done when the first batch is.
        """
        self._announced = epoch
        for name in ("sampler", "batch_sampler", "dataset"):
            part = getattr(self.loader, name, None)
            part.announce(epoch) if isinstance(part, SeededDataset) else announce_epoch(part, epoch)

    def announce_after(self, place: Place) -> None:
        """Tell samplers and data set which epoch the batch after a place is of."""
        self.announce(place[0])
        if place[1] > 0 and place[1] == self.length:
            self.announce(place[0] + 1)

    def batches(self, seed: int, epoch: int, start: int = 0, shift: int = 0) -> Iterator[tuple[Place, Any]]:
        """Return the batches of an epoch, from number ``start`` (counted from 0) on, each with its place.

        The loader is opened when the first one is asked for.

        Args:
            seed: seed of the epoch; the same on all processes.
            epoch: number of the epoch, for samplers and data sets.
            start: batches that are left out.
            shift: lets the batches of an epoch start at another process.
        """
        return chain.from_iterable(map(self._measured, [(seed, epoch, start, shift)]))

    def _measured(self, where: Position) -> Iterator[tuple[Place, Any]]:
        """Open the loader, whose batches must end where its length says."""
        _, epoch, start, shift = where
        batches = iter(self._opened(where))
        if_empty = _USED_UP.format(self.name) if self._is_used_up else ""
        options: dict[str, Any] = {"sizes": self._sizes(start, shift), "total": self.total_length, "if_empty": if_empty}
        held = self._exact.hold(batches, self._length_at(shift), epoch, start, **options)
        return self._bound.watch(held, self.samples_at)

    def _sizes(self, start: int, shift: int) -> Iterator[int]:
        """Return how many samples were drawn for each batch; 1 for all where it is not known or shall not count."""
        knows = self.counts_samples and self._sampler is not None
        return self._sampler.sizes(start, shift) if knows else repeat(1)  # pyright: ignore[reportOptionalMemberAccess]

    def samples_at(self, place: Place) -> list[int] | None:
        """Return the samples of a batch of the epoch that was opened last; None where that is not known."""
        samples = self.seeded_samples_at(place)
        return None if samples is None else [int(sample.index) for sample in samples]

    def seeded_samples_at(self, place: Place) -> list[SampleIndex] | None:
        """Return them with what each was seeded by."""
        seed, epoch, _, shift = self._position
        if self._sampler is None or epoch != place[0]:
            return None
        return self._sampler.samples(seed, epoch, place[1] - 1, shift)

    def _opened(self, where: Position) -> Iterable[Any]:
        """Return the batches from a position on."""
        seed, epoch, start, shift = self._position = where
        self._openings += 1
        if self._announced != epoch:
            self.announce(epoch)
        self._announced = None
        if self.loader is not self.registered and hasattr(self.registered, "collate_fn"):
            self.loader.collate_fn = explaining(self.registered.collate_fn)  # it may have been exchanged
        if self._sampler is None:
            return self._read_in_order(seed, start)
        self._sampler.start_at(seed, epoch, start, shift, self._most)
        return opened(self.loader)

    @property
    def _is_used_up(self) -> bool:
        """Whether it is a generator, or another iterator, that an earlier pass has walked."""
        return self._openings > 1 and isinstance(self.loader, Iterator)

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
            self._stream = EndlessStream(self._epochs(seed_of, position), position)
        return self._stream

    def _epochs(self, seed_of: Callable[[int], int], position: StreamPosition) -> Iterator[tuple[Place, Any]]:
        if self.total_length is None:
            return self._own_epochs(seed_of, *position.place[:2])
        return self._shared_epochs(seed_of, position)

    def _own_epochs(self, seed_of: Callable[[int], int], epoch: int, start: int) -> Iterator[tuple[Place, Any]]:
        """Yield the rest of an epoch of this process's own batches, then one epoch after the other."""
        while True:
            place = (epoch, start, 1)
            batches = iter(self._opened((seed_of(epoch), epoch, start, 0)))
            for place, batch in placed(batches, epoch, start, chain(self._sizes(start, 0), repeat(1))):
                yield place, batch
            if place[:2] == (epoch, 0):
                raise DataError(_USED_UP.format(self.name) if self._is_used_up else _NO_BATCH)
            epoch, start = epoch + 1, 0

    def _shared_epochs(self, seed_of: Callable[[int], int], position: StreamPosition) -> Iterator[tuple[Place, Any]]:
        """Yield this process's batches of the stream that all share."""
        for epoch, start, first in dealt_epochs(position, self._rank, self._size, self._announced_total):
            yield from self.batches(seed_of(epoch), epoch, start, first)

    def _announced_total(self, epoch: int) -> int:
        self.announce(epoch)
        if not (total := self._sampler.total_batches):  # pyright: ignore[reportOptionalMemberAccess]
            raise DataError(_NO_BATCH)
        return total

    def close(self) -> None:
        """Drop the open stream and an adopted loader, so that their workers end."""
        self.loader, self._stream = self.registered, None

    # ------------------------------------------------------------------------------------------- its own state

    def state_dict(self) -> Any:
        """Return the state of a loader that saves its own, else None; until it is read from, what was loaded."""
        if not self.is_stateful:
            return None
        return self.loader.state_dict() if self._state is None else self._state

    def load_state_dict(self, state: Any) -> None:
        """Let the next epoch start where the state says."""
        self._state, self._stream = state if self.is_stateful else None, None


def _fingerprint(loader: Any, sampler: Any, size: int, length: int | None) -> dict[str, Any]:
    batch_size, samples = getattr(loader, "batch_size", None), length_of(getattr(loader, "dataset", None))
    batches = length if samples is None else None
    found = {"samples": samples, "batches": batches, "global_batch": batch_size and batch_size * size}
    return found if sampler is None else found | sampler.fingerprint()


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
_USED_UP = (
    "the {} is an iterator, such as a generator, and used up after one pass. Register something whose __iter__ starts "
    "anew each time: a DataLoader, a list, or an object whose __iter__ is the generator function"
)
