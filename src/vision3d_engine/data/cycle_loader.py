"""A loader as an endless stream, and the order of a pass over a loader."""

from collections.abc import Iterable, Iterator
from typing import Any

from vision3d_engine.core.errors import DataError


def length_of(loader: Any) -> int | None:
    """Return the number of batches of a loader, or None when it does not know."""
    try:
        return len(loader)
    except TypeError:
        return None


def set_epoch(loader: Any, epoch: int) -> None:
    """Tell the samplers of a loader which epoch comes, so that each epoch has an order of its own."""
    for name in ("sampler", "batch_sampler"):
        announce = getattr(getattr(loader, name, None), "set_epoch", None)
        if callable(announce):
            announce(epoch)


class CycleLoader:
    """Goes through a loader again and again; every round is an epoch of the sampler.

    Args:
        loader: any iterable of batches.
        epoch: the number of rounds that are already done.
    """

    def __init__(self, loader: Iterable[Any], epoch: int = 0) -> None:
        self._loader = loader
        self._epoch = epoch
        self._stream = self._rounds()

    def __iter__(self) -> Iterator[Any]:
        return self._stream

    def __next__(self) -> Any:
        return next(self._stream)

    def _rounds(self) -> Iterator[Any]:
        while True:
            self._epoch += 1
            set_epoch(self._loader, self._epoch)
            is_empty = True
            for data_dict in self._loader:
                is_empty = False
                yield data_dict
            if is_empty:
                message = "the training loader yields no batch; check the data set, and drop_last with few samples"
                raise DataError(message)
