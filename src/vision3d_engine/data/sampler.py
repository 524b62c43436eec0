"""Which samples a process loads, in which order, from which position on."""

import contextlib
import random
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import Sampler

from vision3d_engine.core.seeding import derived_seed, seed_host
from vision3d_engine.data.order import Permutation
from vision3d_engine.data.samples import Ticket
from vision3d_engine.distributed.world import get_rank, get_world_size

_CHUNK = 1024


class _Positioned(Sampler):
    """What both samplers share: a trainer says where the next pass begins; without one, every pass is a new one."""

    def __init__(self) -> None:
        self._epoch = 0
        self._begun: tuple[int, int, int, int] | None = None

    def begin(self, base: int, epoch: int, start: int = 0, shift: int = 0) -> None:
        """Let the next pass be that of an epoch, from its batch number ``start`` (counted from 0) on this process.

        Args:
            base: seed that order and samples of the epoch are a function of; the same on all processes.
            epoch: number of the epoch, for the data set.
            start: batches to leave out, without loading them.
            shift: let batch k go to process ``(k + shift) % size``, for an endless stream whose rounds do not end at
                the last process.
        """
        self._begun = (base, epoch, start, shift)

    def set_epoch(self, epoch: int) -> None:
        """Number the next pass; for loops without a trainer."""
        self._epoch = epoch

    def _take_begun(self) -> tuple[int, int, int, int]:
        """Return what `begin` was told of this pass; by default it is random, as torch's samplers are."""
        begun, self._begun = self._begun, None
        if begun is not None:
            return begun
        seed = int(torch.empty((), dtype=torch.int64).random_())
        return derived_seed(seed, self._epoch), self._epoch, 0, 0


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
        sampler: a sampler of the user's that yields this process's share; it is run to its end, under a seed of the
            epoch, when the pass begins (one without a length is read as it goes).
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int = 1,
        *,
        shuffle: bool = False,
        drop_last: bool = False,
        sampler: Iterable[Any] | None = None,
    ) -> None:
        super().__init__()
        self._dataset = dataset
        self._batch_size = batch_size
        self._shuffle = shuffle
        self._drop_last = drop_last
        self.sampler = sampler

    def set_epoch(self, epoch: int) -> None:
        """Number the next pass, also for the user's sampler."""
        super().set_epoch(epoch)
        _announce(self.sampler, epoch)

    def __len__(self) -> int:
        if self.sampler is not None:
            return len(self.sampler)  # type: ignore[arg-type]
        return self._shares(0).samples

    @property
    def batches_of_all(self) -> int | None:
        """Batches of an epoch of all processes together; None when each process has a sampler of the user's."""
        count = len(self._dataset)
        return None if self.sampler is not None else _batches(count, self._batch_size, self._drop_last)

    def __iter__(self) -> Iterator[Ticket]:
        base, epoch, start, shift = self._take_begun()
        if self.sampler is None:
            return self._own_order(base, epoch, self._shares(start, shift))
        return self._users_order(self.sampler, base, epoch, start * self._batch_size)

    def _shares(self, start: int, shift: int = 0) -> "_Shares":
        return _Shares(len(self._dataset), self._batch_size, self._drop_last, start, shift)

    def _own_order(self, base: int, epoch: int, shares: "_Shares") -> Iterator[Ticket]:
        order = Permutation(len(self._dataset), derived_seed(base, "order")) if self._shuffle else None
        for positions in shares:
            indices = order.at(positions) if order is not None else positions
            for position, index in zip(positions, indices, strict=True):
                yield Ticket(index, position, epoch, base)

    def _users_order(self, sampler: Iterable[Any], base: int, epoch: int, start: int) -> Iterator[Ticket]:
        _announce(sampler, epoch)
        indices = _drawn(sampler, derived_seed(base, "order", get_rank()))
        rank, size = get_rank(), get_world_size()
        for number, index in enumerate(islice(indices, start, None), start=start):
            yield Ticket(index, number * size + rank, epoch, base)


class _Shares:
    """The positions of this process's batches from batch ``start`` on, merged to long ranges where they touch."""

    def __init__(self, count: int, batch_size: int, drop_last: bool, start: int, shift: int) -> None:
        rank, size = (get_rank() - shift) % get_world_size(), get_world_size()
        batches = _batches(count, batch_size, drop_last)
        self._end = batches * batch_size if drop_last else count
        if size == 1:
            first = start * batch_size
            self._starts, self._length = range(first, self._end, _CHUNK), _CHUNK
        else:
            stride = size * batch_size
            self._starts = range((rank + start * size) * batch_size, batches * batch_size, stride)
            self._length = batch_size

    @property
    def samples(self) -> int:
        """How many samples these are."""
        if not self._starts:
            return 0
        missing = self._starts[-1] + self._length - self._end
        return len(self._starts) * self._length - max(missing, 0)

    def __iter__(self) -> Iterator[range]:
        return (range(first, min(first + self._length, self._end)) for first in self._starts)


def _batches(count: int, batch_size: int, drop_last: bool) -> int:
    return count // batch_size if drop_last else -(-count // batch_size)


class PositionBatchSampler(_Positioned):
    """The batches of a user's batch sampler, each sample with its position in the epoch."""

    def __init__(self, batch_sampler: Any) -> None:
        super().__init__()
        self.sampler = batch_sampler

    def __getattr__(self, name: str) -> Any:
        if name == "sampler" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.sampler, name)

    def set_epoch(self, epoch: int) -> None:
        """Number the next pass, also for the user's sampler."""
        super().set_epoch(epoch)
        _announce(self.sampler, epoch)

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[list[Ticket]]:
        base, epoch, start, _ = self._take_begun()
        _announce(self.sampler, epoch)
        rank, size, position = get_rank(), get_world_size(), 0
        for number, indices in enumerate(_drawn(self.sampler, derived_seed(base, "order", rank))):
            if number >= start:
                yield [Ticket(index, (position + i) * size + rank, epoch, base) for i, index in enumerate(indices)]
            position += len(indices)


def _announce(sampler: Any, epoch: int) -> None:
    """Tell a sampler, or the one inside a batch sampler, which epoch comes."""
    for part in (sampler, getattr(sampler, "sampler", None)):
        announce = getattr(part, "set_epoch", None)
        if callable(announce):
            announce(epoch)


def _drawn(sampler: Iterable[Any], seed: int) -> Iterable[Any]:
    """Return what a sampler yields when it draws from generators with this seed; the training's are left alone."""
    if not hasattr(sampler, "__len__"):
        return sampler
    with _seeded(seed):
        for part in (sampler, getattr(sampler, "sampler", None)):
            if isinstance(generator := getattr(part, "generator", None), torch.Generator):
                generator.manual_seed(seed)
        return list(sampler)


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Run with the host's generators seeded, and put them back afterwards."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002  the user's draws
    seed_host(seed)
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        random.setstate(states[2])
