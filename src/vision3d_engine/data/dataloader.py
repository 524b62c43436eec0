"""A torch DataLoader that seeds its workers and shares the data among processes."""

import warnings
from collections.abc import Callable, Iterator, Sized
from typing import Any, cast

import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset, Sampler

from vision3d_engine.core.seeding import seed_worker
from vision3d_engine.distributed.world import get_rank, get_world_size


class ShardSampler(Sampler[int]):
    """Every ``size``-th index in order, from ``rank`` on: each sample on exactly one process, none twice.

    Processes may get numbers of samples that differ by one, which is right for validation and testing.
    """

    def __init__(self, dataset: Sized, rank: int, size: int) -> None:
        self._indices = range(rank, len(dataset), size)

    def __iter__(self) -> Iterator[int]:
        return iter(self._indices)

    def __len__(self) -> int:
        return len(self._indices)


def build_dataloader(  # noqa: PLR0913, PLR0917  the published signature
    dataset: Dataset,
    batch_size: int = 1,
    num_workers: int = 1,
    shuffle: bool | None = None,
    collate_fn: Callable[[list], Any] | None = None,
    sampler: Sampler | None = None,
    pin_memory: bool = True,
    drop_last: bool = False,
    **options: Any,
) -> DataLoader:
    """Build a DataLoader for one process of however many there are.

    Args:
        dataset: samples; dicts with the default ``collate_fn``, or whatever yours turns into a dict.
        batch_size: samples of one batch on this process.
        num_workers: worker processes; numpy and python are seeded in each.
        shuffle: draw a new order every epoch. With several processes, shuffled data is shared equally (a few samples
            may be repeated, as ``DistributedSampler`` does), data in order is shared without repetition.
        collate_fn: makes one batch of a list of samples.
        sampler: your own order; with several processes it must give each one its own share.
        pin_memory: allow fast copies to the accelerator; without an accelerator it has no effect.
        drop_last: leave out an incomplete last batch.
        options: passed on to ``torch.utils.data.DataLoader``.
    """
    if sampler is None:
        sampler = _sampler(dataset, bool(shuffle), drop_last)
        shuffle = bool(shuffle) if sampler is None and not isinstance(dataset, IterableDataset) else None
    elif get_world_size() > 1:
        warnings.warn("a sampler of your own must give each process its own share of the data", stacklevel=2)
    options.setdefault("worker_init_fn", seed_worker)
    return DataLoader(
        dataset,
        batch_size=batch_size,
        shuffle=shuffle,
        num_workers=num_workers,
        collate_fn=collate_fn,
        sampler=sampler,
        pin_memory=pin_memory and torch.accelerator.is_available(),
        drop_last=drop_last,
        **options,
    )


def _sampler(dataset: Dataset, shuffle: bool, drop_last: bool) -> Sampler | None:
    """Return the sampler of this process's share, or None when one process takes all."""
    if get_world_size() == 1 or isinstance(dataset, IterableDataset):
        return None
    if shuffle:
        return DistributedSampler(dataset, shuffle=True, drop_last=drop_last)
    return ShardSampler(cast("Sized", dataset), get_rank(), get_world_size())
