"""Samples whose random numbers are a function of their position, wherever and whenever they are loaded."""

from collections.abc import Sized
from typing import Any, NamedTuple, cast

from torch.utils.data import Dataset

from vision3d_engine.core.child_stacks import is_child, note_sample
from vision3d_engine.core.errors import DataError, SampleError, text_of
from vision3d_engine.core.seeding import seed_at, seed_host


class SampleIndex(NamedTuple):
    """What a sampler hands to a worker: which sample to load, and the position in the run that it is for."""

    index: Any
    position: int
    epoch: int
    base: int

    @property
    def seed(self) -> int:
        """The seed that torch, numpy and python get before the sample is loaded."""
        return seed_at(self.base, self.position)


_CURRENT: list[int] = []


def sample_seed() -> int:
    """Return the seed of the sample that is being loaded, for libraries with generators of their own; 63 bits.

    It differs between samples and epochs, and is the same on any number of workers and processes, and after a resume:
    ``rng = np.random.default_rng(sample_seed())`` in ``__getitem__``.

    Raises:
        DataError: outside of ``Dataset.__getitem__``, or under a loader that the engine does not address by index.
    """
    if not _CURRENT:
        message = (
            "sample_seed() is known only while a sample is loaded: call it in Dataset.__getitem__, of a data set whose "
            "loader was made by build_dataloader or registered with a trainer"
        )
        raise DataError(message)
    return _CURRENT[-1]


class SeededDataset(Dataset):
    """A data set that seeds torch, numpy and python for every sample; all else is the user's own data set.

    It also calls ``dataset.set_epoch(epoch)``, if there is one, in the process that loads the sample. Seeding takes
    about 8 us a sample; generators of other libraries can take `sample_seed`. ``__getitems__`` is not used.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self._epoch: int | None = None

    def __len__(self) -> int:
        return len(cast("Sized", self.dataset))

    def __getattr__(self, name: str) -> Any:
        if name == "dataset" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute of the user's data set: ``loader.dataset.x = value`` reaches it."""
        if name in {"dataset", "_epoch"}:
            super().__setattr__(name, value)
        else:
            setattr(self.dataset, name, value)

    def __getitem__(self, index: Any) -> Any:
        if not isinstance(index, SampleIndex):
            return self.dataset[index]
        self.announce(index.epoch)
        return load_sample(self.dataset, index)

    def announce(self, epoch: int) -> None:
        """Tell the data set which epoch it is, once an epoch in each process."""
        if epoch != self._epoch:
            self._epoch = epoch
            announce_epoch(self.dataset, epoch)


def announce_epoch(dataset: Any, epoch: int) -> None:
    """Call ``dataset.set_epoch(epoch)`` if there is such a method."""
    announce = getattr(dataset, "set_epoch", None)
    if callable(announce):
        announce(epoch)


def load_sample(dataset: Any, sample: SampleIndex) -> Any:
    """Load one sample under its seed.

    Raises:
        SampleError: when the data set raises, with the line that loads this sample again.
    """
    seed = sample.seed
    if is_child():
        note_sample(f"sample {sample.index!r} (epoch {sample.epoch}, position {sample.position})")
    seed_host(seed)
    _CURRENT.append(seed)
    try:
        return dataset[sample.index]
    except Exception as error:  # noqa: BLE001  it is raised again
        message = (
            f"sample {sample.index!r} of {type(dataset).__name__} raised {type(error).__name__}: {text_of(error)} "
            f"(epoch {sample.epoch}, position {sample.position}). To load it again with the same random numbers: "
            f"vision3d_engine.replay_sample(dataset, {sample.index!r}, epoch={sample.epoch}, seed={seed})"
        )
        raise SampleError(message).with_traceback(error.__traceback__) from error.__cause__  # one traceback, not two
    finally:
        _CURRENT.pop()


def replay_sample(dataset: Any, index: Any, *, epoch: int, seed: int) -> Any:
    """Load a sample again with the random numbers that it had; the arguments stand in the error message.

    Args:
        dataset: the data set that the loader had.
        index: which sample.
        epoch: what ``dataset.set_epoch`` is told, if there is one.
        seed: the sample's seed.
    """
    dataset = dataset.dataset if isinstance(dataset, SeededDataset) else dataset
    announce_epoch(dataset, epoch)
    seed_host(seed)
    _CURRENT.append(seed)
    try:
        return dataset[index]
    finally:
        _CURRENT.pop()
