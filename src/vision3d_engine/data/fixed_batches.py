"""The same few batches in every epoch, to see whether a model can learn them by heart."""

import copy
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain, islice, repeat
from typing import Any

from vision3d_engine.core.errors import DataError
from vision3d_engine.data.endless_stream import Place, StreamPosition
from vision3d_engine.data.exact_length import at_most
from vision3d_engine.data.resumable_loader import Position, ResumableLoader

_FIRST_EPOCH = 1


def readers_of(count: int, seed_of: Callable[..., int]) -> dict[str, Callable[..., ResumableLoader]]:
    """Return the maker of what reads training data by its first batches alone; none if their number is 0.

    Args:
        count: batches of each process.
        seed_of: returns the seed of an epoch of the data, given phase and number.
    """
    seed = seed_of("train", _FIRST_EPOCH)
    return {"training": partial(FixedBatches, count=count, seed=seed)} if count else {}


class FixedBatches(ResumableLoader):
    """The first batches of a user's loader: those of the first epoch, read once, kept on the host, and yielded anew.

    Since they are kept, they repeat themselves whatever the loader is: a generator, a data set that draws as it likes.
    Each is copied when it is yielded, since a step may change what it gets.

    Args:
        registered: what the user registered.
        world: device, rank and size, as for `ResumableLoader`.
        count: how many batches of this process; where there are fewer, all of them.
        seed: seed of the first epoch.
        options: further ones of `ResumableLoader`.
    """

    def __init__(self, registered: Any, *world: Any, count: int, seed: int, **options: Any) -> None:
        super().__init__(registered, *world, **options)
        self._most: int | None = count
        self._count, self._seed = count, seed
        self._kept: list[tuple[Any, int]] | None = None

    @property
    def is_positioned(self) -> bool:
        """Whether batches are addressed by position: they lie in a list."""
        return True

    @property
    def is_stateful(self) -> bool:
        """Whether the loader saves its own position, which is not needed."""
        return False

    @property
    def length(self) -> int | None:
        """Batches of an epoch on this process, None when that is not known before they are read."""
        return at_most(super().length, self._count) if self._kept is None else len(self._kept)

    @property
    def total_length(self) -> int | None:
        """Batches of an epoch of all processes together; None unless the engine shares them out."""
        return at_most(super().total_length, self._count * self._size)

    @property
    def is_dealt(self) -> bool:
        """Whether other processes can go on with the rest: each has batches of its own."""
        return False

    def announce(self, epoch: int) -> None:
        """Tell samplers and data set that the first epoch comes."""
        super().announce(_FIRST_EPOCH)

    def _opened(self, where: Position) -> Iterable[Any]:
        _, _, start, _ = where
        return (_copied(batch, self.name) for batch, _ in islice(self._read(), start, None))

    def _sizes(self, start: int, shift: int) -> Iterator[int]:
        return (size for _, size in islice(self._read(), start, None))

    def _length_at(self, shift: int) -> int | None:
        return self.length

    def _epochs(self, seed_of: Callable[[int], int], position: StreamPosition) -> Iterator[tuple[Place, Any]]:
        return self._own_epochs(seed_of, *position.place[:2])

    def _read(self) -> list[tuple[Any, int]]:
        """Return the batches, each with what it weighs; the first call reads them."""
        if self._kept is None:
            batches = super()._opened((self._seed, _FIRST_EPOCH, 0, 0))
            sizes = chain(super()._sizes(0, 0), repeat(1))
            pairs = islice(zip(batches, sizes, strict=False), self._count)
            self._kept = [
                (_copied(batch, self.name), size) for batch, size in pairs
            ]  # copied out of memory shared with workers
            self._tell(len(self._kept))
        return self._kept

    def _tell(self, found: int) -> None:
        """Say what is trained on, and that there is less than was asked for."""
        few = "" if found == self._count else f", all that it has (asked for: {self._count})"
        self._say(_SAID.format(found, self.name, few), "INFO")


def _copied(batch: Any, name: str) -> Any:
    """Return a copy of a batch; of tensors that require grad, and other things, torch or python may have none."""
    try:
        return copy.deepcopy(batch)
    except (TypeError, RuntimeError, AttributeError) as error:
        raise DataError(_NO_COPY.format(name, error)) from error


_SAID = (
    "overfit: every epoch trains on the same {} batches of the {}{}, kept in memory; validations walk them too, and "
    "the validation loader is not read"
)
_NO_COPY = (
    "overfit: a batch of the {} cannot be copied: {}. Batches are kept, and copied for each step, which may change "
    "them; let the loader yield tensors, arrays, numbers and text, in dicts and lists"
)
