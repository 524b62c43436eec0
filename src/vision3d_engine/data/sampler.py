"""Which samples a process loads, in which order, from which position on."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice, repeat
from typing import Any

import torch
from torch.utils.data import Sampler

from vision3d_engine.core.seeding import derived_seed
from vision3d_engine.data.permutation import Passes, Permutation
from vision3d_engine.data.repeating import repeated
from vision3d_engine.data.sample_seeds import SampleIndex
from vision3d_engine.data.shares import Shares, batch_sizes, number_of_batches
from vision3d_engine.data.user_samplers import DrawnOrders, announce_to, fingerprint_of, knows_its_process
from vision3d_engine.distributed.processes import get_rank, get_world_size

_ENDLESS = 2**62
_Start = tuple[int, int, int, int, int | None]


class _Positioned(Sampler):
    """What both samplers share: a trainer says where the next pass begins; without one, every pass is a new one.

    Attributes:
        orders: what a sampler of the user's has drawn.

    Their ``__iter__`` are generators, which begin when the first sample is asked for: a DataLoader with workers calls
    ``iter`` twice and uses the second.
    """

    def __init__(self) -> None:
        self._epoch = 0
        self._passes = 0
        self._start: _Start | None = None
        self.orders = DrawnOrders()

    @property
    def knows_sizes(self) -> bool:
        """Whether `sizes` knows how many samples each batch holds."""
        return True

    def start_at(self, base: int, epoch: int, start: int = 0, shift: int = 0, most: int | None = None) -> None:
        """Let the next pass be that of an epoch, from its batch number ``start`` (counted from 0) on this process.

        Args:
            base: seed that order and samples of the epoch are a function of; the same on all processes.
            epoch: number of the epoch, for the data set.
            start: batches to leave out, without loading them.
            shift: let batch k go to process ``(k + shift) % size``, for an endless stream whose rounds do not end at
                the last process.
            most: batches after which the pass ends, so that workers load no others; None for all.
        """
        self._start = (base, epoch, start, shift, most)

    def set_epoch(self, epoch: int) -> None:
        """Number the next pass; for loops without a trainer."""
        self._epoch = epoch

    def _take_start(self) -> _Start:
        """Return what `start_at` was told of this pass.

        By default it is random, as torch's samplers are; with several processes, which must agree, it is a function of
        the number of the pass.
        """
        start, self._start = self._start, None
        if start is not None:
            return start
        self._passes += 1
        is_alone = get_world_size() == 1
        seed = int(torch.empty((), dtype=torch.int64).random_()) if is_alone else self._passes
        return derived_seed(seed, self._epoch), self._epoch, 0, 0, None


class PositionSampler(_Positioned):
    """Samples in order, shuffled or as another sampler has them, each with its position in the epoch.

    The batches of an epoch are the same on any number of processes: batch k goes to process ``k % size`` as its batch
    ``k // size``. No sample is left out, padded or repeated, so processes may get numbers of batches that differ by
    one. N processes thus train like one that accumulates N batches.

    Args:
        dataset: only its length is used.
        batch_size: samples of a batch.
        shuffle: draw a new order every epoch.
        drop_last: leave out the incomplete last batch.
        sampler: a sampler of the user's; it is run to its end, under a seed of the epoch, when the pass begins, and the
            processes share what it draws. One that knows its process (``num_replicas``, as ``DistributedSampler`` has
            it, ``world_size`` or ``rank``) or has no length, which is read as it goes, yields this process's own share.
        is_shared: whether processes share what the user's sampler draws; else each has what its own yields.
        repeat: passes over the set in an epoch, each in another order when shuffled.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int = 1,
        *,
        shuffle: bool = False,
        drop_last: bool = False,
        sampler: Iterable[Any] | None = None,
        is_shared: bool = True,
        repeat: int = 1,
    ) -> None:
        super().__init__()
        self._is_shared = is_shared
        self._dataset = dataset
        self._batch_size = batch_size
        self._shuffle = shuffle
        self._drop_last = drop_last
        self._repeat = repeat
        self.sampler = repeated(sampler, repeat)

    def set_epoch(self, epoch: int) -> None:
        """Number the next pass, also for the user's sampler."""
        super().set_epoch(epoch)
        announce_to(self.sampler, epoch)

    def __len__(self) -> int:
        if self.is_presharded:
            return len(self.sampler)  # type: ignore[arg-type]
        return self._shares(self._count, 0).samples

    @property
    def is_presharded(self) -> bool:
        """Whether the user's sampler has been divided between the processes by itself."""
        return self.sampler is not None and (not self._is_shared or knows_its_process(self.sampler))

    @property
    def total_batches(self) -> int | None:
        """Batches of an epoch of all processes together; None when each process has a share of its own."""
        return None if self.is_presharded else number_of_batches(self._count, self._batch_size, self._drop_last)

    @property
    def knows_sizes(self) -> bool:
        """Whether the user's sampler, if there is one, says how many samples it yields."""
        return self.sampler is None or hasattr(self.sampler, "__len__")

    def fingerprint(self) -> dict[str, Any]:
        """Return what the order of an epoch is a function of, beside the data."""
        found = {"drop_last": self._drop_last, "repeat": self._repeat}
        if self.sampler is not None:
            return found | fingerprint_of(self.sampler)
        return {"order": "shuffled" if self._shuffle else "in order"} | found

    def samples(self, base: int, epoch: int, start: int, shift: int = 0) -> list[SampleIndex] | None:
        """Return the samples of this process's batch number ``start`` (counted from 0) of an epoch with a seed.

        None where a sampler of the user's has chosen them.
        """
        if self.sampler is not None:
            return None
        positions = next(iter(self._shares(self._count, start, shift)), range(0))[: self._batch_size]
        return list(self._shared(self._permutation(derived_seed(base, "order")), base, epoch, [positions]))

    def sizes(self, start: int, shift: int = 0) -> Iterator[int]:
        """Return how many samples this process's batches hold, from number ``start`` (counted from 0) on.

        Where a sampler does not know how many it yields, nothing is returned.
        """
        if self.is_presharded:
            count = len(self.sampler) if hasattr(self.sampler, "__len__") else 0  # type: ignore[arg-type]
            return batch_sizes(
                range(start, number_of_batches(count, self._batch_size, self._drop_last)), self._batch_size, count
            )
        rank, size = (get_rank() - shift) % get_world_size(), get_world_size()
        own = range(rank + start * size, self.total_batches or 0, size)
        return batch_sizes(own, self._batch_size, self._count)

    @property
    def _count(self) -> int:
        return len(self._dataset) * self._repeat if self.sampler is None else len(self.sampler)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[SampleIndex]:
        base, epoch, start, shift, most = self._take_start()
        announce_to(self.sampler, epoch)
        if self.is_presharded:
            samples = self._presharded(base, epoch, start * self._batch_size)
        else:
            permutation = self._permutation(derived_seed(base, "order"))
            samples = self._shared(permutation, base, epoch, self._shares(len(permutation), start, shift))
        yield from islice(samples, None if most is None else most * self._batch_size)

    def _permutation(self, seed: int) -> Any:
        """Return which sample stands at which position of the epoch."""
        if self.sampler is not None:
            return self.orders.draw(self.sampler, seed)
        count = len(self._dataset)
        if self._shuffle and self._repeat == 1:
            return Permutation(count, seed)
        order_of = partial(_order_of_pass, count, seed) if self._shuffle else lambda _: range(count)
        return Passes(count, self._repeat, order_of)

    def _shares(self, count: int, start: int, shift: int = 0) -> Shares:
        rank, size = (get_rank() - shift) % get_world_size(), get_world_size()
        return Shares(count, self._batch_size, self._drop_last, start, rank, size)

    def _shared(self, permutation: Any, base: int, epoch: int, shares: Iterable[range]) -> Iterator[SampleIndex]:
        for positions in shares:
            is_function = isinstance(permutation, Permutation | Passes)
            indices = permutation.at(positions) if is_function else permutation[positions.start : positions.stop]
            yield from map(SampleIndex, indices, positions, repeat(epoch), repeat(base))

    def _presharded(self, base: int, epoch: int, start: int) -> Iterator[SampleIndex]:
        rank, size = get_rank(), get_world_size()
        indices = self.orders.draw(self.sampler, derived_seed(base, "order", rank))  # pyright: ignore[reportArgumentType]
        for number, index in enumerate(islice(indices, start, None), start=start):
            yield SampleIndex(index, number * size + rank, epoch, base)


def _order_of_pass(count: int, seed: int, number: int) -> Permutation:
    return Permutation(count, derived_seed(seed, number) if number else seed)


class PositionBatchSampler(_Positioned):
    """The batches of a user's batch sampler, each sample with its position in the epoch.

    Processes share them, batch k going to process ``k % size``, unless the sampler, or the one inside it, knows its
    process; see `PositionSampler`.
    """

    def __init__(self, batch_sampler: Any, is_shared: bool = True) -> None:
        super().__init__()
        self._is_shared = is_shared
        self.sampler = batch_sampler
        self._drawn: deque[int] = deque()

    def __getattr__(self, name: str) -> Any:
        if name == "sampler" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.sampler, name)

    def set_epoch(self, epoch: int) -> None:
        """Number the next pass, also for the user's sampler."""
        super().set_epoch(epoch)
        announce_to(self.sampler, epoch)

    def __len__(self) -> int:
        batches = self.total_batches
        return len(self.sampler) if batches is None else len(range(get_rank(), batches, get_world_size()))

    @property
    def is_presharded(self) -> bool:
        """Whether the user's sampler has been divided between the processes by itself."""
        return not self._is_shared or knows_its_process(self.sampler)

    @property
    def total_batches(self) -> int | None:
        """Batches of an epoch of all processes together; None when each process has a share of its own."""
        return None if self.is_presharded else len(self.sampler)

    def fingerprint(self) -> dict[str, Any]:
        """Return what the order of an epoch is a function of, beside the data, and what one step of all takes of it."""
        found, size = fingerprint_of(self.sampler), getattr(self.sampler, "batch_size", None)
        if self.is_presharded:
            return found
        per_step = ("samples_per_step", size) if isinstance(size, int) else ("batches_per_step", 1)
        return found | {per_step[0]: per_step[1] * get_world_size()}

    def start_at(self, base: int, epoch: int, start: int = 0, shift: int = 0, most: int | None = None) -> None:
        """Let the next pass begin somewhere; see `_Positioned.start_at`."""
        super().start_at(base, epoch, start, shift, most)
        self._drawn.clear()

    def samples(self, base: int, epoch: int, start: int, shift: int = 0) -> list[SampleIndex] | None:
        """Return the samples of this process's batch number ``start`` (counted from 0) of an epoch with a seed.

        None where a sampler of the user's has chosen them, which may choose others when it is asked again.
        """
        if not hasattr(self.sampler, "cloud_lengths"):
            return None
        return next(self._batches(base, epoch, start, shift), [])

    def sizes(self, _start: int, _shift: int = 0) -> Iterator[int]:
        """Return the samples of this process's batches, each to be asked for once its batch has been drawn."""
        return map(lambda _: self._drawn.popleft() if self._drawn else 1, repeat(None))  # noqa: C417  lazy

    def __iter__(self) -> Iterator[list[SampleIndex]]:
        """Yield the batches, and note how many samples each holds."""
        base, epoch, start, shift, most = self._take_start()
        announce_to(self.sampler, epoch)
        for batch in islice(self._batches(base, epoch, start, shift), most):
            self._drawn.append(len(batch))
            yield batch

    def _batches(self, base: int, epoch: int, start: int, shift: int) -> Iterator[list[SampleIndex]]:
        rank, size = get_rank(), get_world_size()
        if self.is_presharded:
            batches = self.orders.draw(self.sampler, derived_seed(base, "order", rank))
            yield from _indexed(batches, range(start, _ENDLESS), base, epoch, lambda place: place * size + rank)
        else:
            batches = self.orders.draw(self.sampler, derived_seed(base, "order"))
            mine = range((rank - shift) % size + start * size, _ENDLESS, size)
            yield from _indexed(batches, mine, base, epoch, lambda place: place)


def _indexed(
    batches: Iterable[Any], chosen: range, base: int, epoch: int, position_of: Callable[[int], int]
) -> Iterator[list[SampleIndex]]:
    """Yield the chosen batches; the position of a sample is a function of its place among all that were drawn."""
    place = 0
    for number, indices in enumerate(batches):
        if number in chosen:
            yield [SampleIndex(index, position_of(place + i), epoch, base) for i, index in enumerate(indices)]
        place += len(indices)
