"""A torch DataLoader whose every sample is addressed by its position in the run."""

import copy
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
)

from vision3d_engine.core.seeding import seed_worker
from vision3d_engine.data.collate import explaining
from vision3d_engine.data.measured_lengths import Measuring
from vision3d_engine.data.point_batches import point_batches
from vision3d_engine.data.repeating import check_repeat, repeated
from vision3d_engine.data.sample_seeds import SeededDataset
from vision3d_engine.data.sampler import PositionBatchSampler, PositionSampler


def build_dataloader(  # noqa: PLR0913, PLR0917  the published signature
    dataset: Dataset,
    batch_size: int = 1,
    num_workers: int = 1,
    shuffle: bool | None = None,
    collate_fn: Callable[[list], Any] | None = None,
    sampler: Sampler | None = None,
    pin_memory: bool = True,
    drop_last: bool = False,
    batch_points: int | None = None,
    repeat: int = 1,
    points_of: Callable[[Any], int] | None = None,
    lengths_cache: str | Path | None = None,
    **options: Any,
) -> DataLoader:
    """Build a DataLoader for one process of however many there are.

    Order and samples are functions of (seed, epoch, position), with any number of workers and processes.

    Args:
        dataset: samples; an iterable data set is handed to torch as it is: a resume reads and skips.
        batch_size: samples of one batch on this process.
        num_workers: worker processes.
        shuffle: draw a new order every epoch; it needs no memory.
        collate_fn: makes one batch, a dict, of a list of samples; by default torch's, for samples that are dicts.
        sampler: your own order, which the processes share; one that knows its process gives each its own.
        pin_memory: allow fast copies to the accelerator; without an accelerator it has no effect.
        drop_last: leave out an incomplete last batch.
        batch_points: most points of one batch; batch_size is then the most samples; see `point_batches`.
        repeat: passes over the set in an epoch, each in another order when shuffled; samples have another seed in each.
        points_of: returns the points of a sample, to be measured by; by default those of its clouds (`collate_packed`).
        lengths_cache: file that keeps measured lengths; of several processes one measures, the others wait for it.
        options: passed on to torch's DataLoader; a ``batch_sampler`` replaces batch_size, shuffle, sampler, drop_last.
    """
    options |= {"num_workers": num_workers, "collate_fn": collate_fn, "pin_memory": pin_memory}
    order = {"shuffle": bool(shuffle) and sampler is None, "sampler": sampler, "drop_last": drop_last}
    if batch_points is not None:
        chosen = {"how": Measuring(points_of, num_workers, lengths_cache), **options, **order}
        options["batch_sampler"] = point_batches(dataset, batch_points, batch_size, **chosen)
    return _built(dataset, batch_size, order | {"repeat": repeat}, options)


def _built(dataset: Any, batch_size: int, order: dict[str, Any], options: dict[str, Any]) -> DataLoader:
    """Return torch's loader with a sampler that knows positions."""
    drop_last = order["drop_last"]
    check_repeat(order["repeat"], isinstance(dataset, IterableDataset))
    options["pin_memory"] = options["pin_memory"] and torch.accelerator.is_available()
    options.setdefault("worker_init_fn", seed_worker)
    if batch_size is not None or options.get("batch_sampler") is not None:
        options["collate_fn"] = explaining(options["collate_fn"])
    if isinstance(dataset, IterableDataset):
        return DataLoader(dataset, batch_size=batch_size, drop_last=drop_last, **options)
    if options.get("batch_sampler") is not None:
        options["batch_sampler"] = PositionBatchSampler(repeated(options["batch_sampler"], order["repeat"]))
        return DataLoader(SeededDataset(dataset), **options)
    positions = PositionSampler(dataset, batch_size or 1, **order)
    return DataLoader(SeededDataset(dataset), batch_size=batch_size, sampler=positions, drop_last=drop_last, **options)


_KEPT_OPTIONS = (
    "num_workers",
    "collate_fn",
    "pin_memory",
    "timeout",
    "worker_init_fn",
    "multiprocessing_context",
    "prefetch_factor",
    "persistent_workers",
    "pin_memory_device",
    "in_order",
)


def orders_of(loader: Any) -> Any:
    """Return what a sampler of the user's has drawn (`DrawnOrders`); None where the engine draws from none."""
    return getattr(sampler_of(loader), "orders", None)


def sampler_of(loader: Any) -> PositionSampler | PositionBatchSampler | None:
    """Return the part of a loader that knows positions, or None when it was not made by `build_dataloader`."""
    for name in ("batch_sampler", "sampler"):
        if isinstance(found := getattr(loader, name, None), PositionSampler | PositionBatchSampler):
            return found
    return None


def adopted(loader: Any) -> Any:
    """Return a plain DataLoader over a map-style data set as `build_dataloader` would have made it.

    Same batch size, workers and collate function, and the same samples: those of its sampler or batch sampler, which
    is run under the seed of the epoch. Several processes share a data set that is walked in order or shuffled; a
    sampler of the script's own may have divided the data already, so each process has what its own yields, as with
    torch. Left as it is: a subclass, a sampler without a length, which is read as it goes, and a data set that loads
    many samples at once (``__getitems__``).
    """
    if type(loader) is not DataLoader or sampler_of(loader) is not None or not _is_by_sample(loader.dataset):
        return loader
    dataset, has_own_batches = SeededDataset(loader.dataset), loader.batch_size is None and loader.batch_sampler
    if not hasattr(loader.batch_sampler if has_own_batches else loader.sampler, "__len__"):
        return loader
    if has_own_batches:
        return _rebuilt(loader, dataset, batch_sampler=PositionBatchSampler(loader.batch_sampler, is_shared=False))
    shuffle, size = _is_shuffle(loader), loader.batch_size or 1
    own = None if shuffle or _is_in_order(loader) else loader.sampler
    options: dict[str, Any] = {"drop_last": loader.drop_last, "sampler": own, "is_shared": _walks_all(loader)}
    sampler = PositionSampler(loader.dataset, size, shuffle=shuffle, **options)
    return _rebuilt(loader, dataset, sampler=sampler)


def _is_by_sample(dataset: Any) -> bool:
    """Tell whether a data set is read sample by sample; torch's Subset is, if the one inside it is."""
    while type(dataset) is Subset:
        dataset = dataset.dataset
    is_map_style = hasattr(dataset, "__getitem__") and not isinstance(dataset, IterableDataset)
    return is_map_style and not hasattr(dataset, "__getitems__")


def _is_in_order(loader: DataLoader) -> bool:
    return type(loader.sampler) is SequentialSampler and loader.sampler.data_source is loader.dataset


def _is_shuffle(loader: DataLoader) -> bool:
    """Tell whether each sample is drawn once an epoch, by no generator of the script's own."""
    return _walks_all(loader) and loader.sampler.generator is None  # pyright: ignore[reportAttributeAccessIssue]


def _walks_all(loader: DataLoader) -> bool:
    """Tell whether a loader shuffles a whole data set, by whatever generator."""
    sampler = loader.sampler
    if type(sampler) is not RandomSampler:
        return False
    return sampler.data_source is loader.dataset and not sampler.replacement and len(sampler) == len(loader.dataset)  # type: ignore[arg-type]


def copied(loader: Any) -> Any:
    """Return a loader with an iterator, workers and sampler of its own over the same data set.

    A loader whose samples are not addressed by position is returned as it is.
    """
    sampler = copy.copy(sampler_of(loader))
    if type(loader) is not DataLoader or sampler is None:
        return loader
    if isinstance(sampler, PositionBatchSampler):
        return _rebuilt(loader, loader.dataset, batch_sampler=sampler)
    return _rebuilt(loader, loader.dataset, sampler=sampler)


def without(loader: DataLoader, done: Collection[int]) -> DataLoader:
    """Return a loader of the same batches but those of some numbers, from 0, which are drawn and not loaded."""
    if loader.batch_sampler is None:
        return _rebuilt(loader, loader.dataset, sampler=_Rest(loader.sampler, done))
    return _rebuilt(loader, loader.dataset, batch_sampler=_Rest(loader.batch_sampler, done))


class _Rest:
    """What a sampler draws, but for what has some numbers."""

    def __init__(self, sampler: Iterable[Any], done: Collection[int]) -> None:
        self._sampler, self._done = sampler, done

    def __iter__(self) -> Iterator[Any]:
        return (drawn for number, drawn in enumerate(self._sampler) if number not in self._done)

    def __len__(self) -> int:
        return len(self._sampler) - len(self._done)  # type: ignore[arg-type]


def _rebuilt(loader: DataLoader, dataset: Any, **samplers: Any) -> DataLoader:
    """Return a DataLoader with the options of another one, but with these samplers."""
    options = {name: getattr(loader, name) for name in _KEPT_OPTIONS if hasattr(loader, name)} | samplers
    options["worker_init_fn"] = options["worker_init_fn"] or seed_worker
    options["collate_fn"] = explaining(options["collate_fn"])
    if "sampler" in samplers:
        options |= {"batch_size": loader.batch_size, "drop_last": loader.drop_last}
    return DataLoader(dataset, **options)
