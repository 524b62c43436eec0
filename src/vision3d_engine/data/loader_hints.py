"""What is said of a loader: settings that cost dearly, and which process reads what."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch.utils.data import DataLoader, IterableDataset

from vision3d_engine.core.errors import listed
from vision3d_engine.data.sampler import PositionBatchSampler, PositionSampler
from vision3d_engine.data.user_samplers import mark_of_process

_SLOW_SHARE = 0.2
SLOW_S = 0.005
_SLOW_START_S = 0.5
_SLOW_START_SHARE = 0.05


def loading_hint(loader: Any, data_s: float, model_s: float) -> str | None:
    """Return what would make loading faster, if steps wait for it, else None.

    Args:
        loader: the loader that is read.
        data_s: mean wait for a batch.
        model_s: mean time of a step without it.
    """
    share = data_s / max(data_s + model_s, 1e-9)
    if data_s < SLOW_S or share < _SLOW_SHARE or not hasattr(loader, "num_workers"):
        return None
    waited = f"{share:.0%} of the time is spent waiting for data ({data_s:.3f}s a batch)"
    if loader.num_workers == 0:
        return f"{waited}, which is loaded in the training process: set num_workers to 2 or more"
    return f"{waited} with {loader.num_workers} workers: raise num_workers, or make Dataset.__getitem__ faster"


def startup_hint(loader: Any, first_s: float, epoch_s: float) -> str | None:
    """Return what would make epochs begin sooner, if starting their workers takes a share of them, else None.

    Args:
        loader: the loader that is read.
        first_s: wait for the first batch of the epoch.
        epoch_s: time of the whole epoch.
    """
    restarts = getattr(loader, "num_workers", 0) > 0 and not getattr(loader, "persistent_workers", True)
    if not restarts or first_s < max(_SLOW_START_S, _SLOW_START_SHARE * epoch_s):
        return None
    return (
        f"the first batch of the epoch came after {first_s:.1f}s of {epoch_s:.1f}s, since the {loader.num_workers} "
        "data workers are started for each epoch: pass persistent_workers=True to the loader"
    )


class LoaderHints:
    """Says one hint a run.

    Args:
        say: takes the message.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._has_said = False

    def tell(self, hint: str | None) -> None:
        """Say a hint, if it is one and the first."""
        if hint is not None and not self._has_said:
            self._has_said = True
            self._say(hint)


class SharingHint(NamedTuple):
    """How processes share the data of a loader, and how loudly that is to be said."""

    text: str
    level: str


def sharing_hint(loader: Any, positions: PositionSampler | PositionBatchSampler | None) -> SharingHint | None:
    """Return who reads what of a loader; None when the engine shares out a whole data set, as is usual.

    Args:
        loader: the loader that is read.
        positions: the part of it that knows positions, None without one.
    """
    sampler = _sampler_of(loader) if positions is None else positions.sampler
    if positions is not None and sampler is None:
        return None
    is_stream = isinstance(getattr(loader, "dataset", None), IterableDataset)
    name = type(loader.dataset if is_stream else loader if sampler is None else sampler).__name__
    if (mark := mark_of_process(sampler)) is not None:
        return SharingHint(_DIVIDED.format(name, mark), "INFO")
    if positions is not None and not positions.is_presharded:
        return SharingHint(_SHARED.format(name), "INFO")
    return SharingHint(_EVERYTHING.format(name) + (_DIVIDE_STREAM if is_stream else _DIVIDE), "WARNING")


def _sampler_of(loader: Any) -> Any:
    """Return what chooses the samples of a loader that the engine did not build; None when that is not known."""
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return None
    is_standard = loader.batch_sampler is None or loader.sampler is getattr(loader.batch_sampler, "sampler", None)
    return loader.sampler if is_standard else loader.batch_sampler


def length_hint(name: str, lengths: Sequence[int | None], totals: Sequence[int | None]) -> str | None:
    """Return how the numbers of batches of the processes differ, other than by the engine's sharing; None if not.

    Args:
        name: of the loader.
        lengths: batches of each process, in rank order.
        totals: batches of all processes together, as each process knows them; None where the engine shares nothing out.
    """
    if len(set(totals)) > 1:
        return (
            f"the {name} holds other data on each process ({listed(totals)} batches before they are shared out), so "
            "some are lost and some read twice. Give every process the same data set"
        )
    if totals[0] is None and len(set(lengths)) > 1:
        return f"the {name} has different numbers of batches on the processes: {listed(lengths)}"
    return None


_SHARED = "the processes share what {} draws, batch k going to process k modulo their number"
_DIVIDED = (
    "{0} has an attribute '{1}', so it is taken to divide the data by itself, and each process reads what its own "
    "yields. If it does not divide them, rename the attribute"
)
_EVERYTHING = "each process reads all that its own {} yields, since the engine cannot share it out. "
_DIVIDE = (
    "If it does not divide the data by rank, so do build_dataloader(dataset, sampler=...) and (batch_sampler=...), "
    "whose batch k goes to process k modulo their number, where the sampler has a length"
)
_DIVIDE_STREAM = (
    "If it does not divide the data by rank, let the data set yield its share: get_rank(), get_world_size()"
)


def resume_note(name: str, sampler: Any, is_stateful: bool) -> str | None:
    """Return one line on what a resume in mid-epoch can promise, or None when it is exact without a condition."""
    if sampler is None:
        return (_STATEFUL if is_stateful else _SKIPPED).format(name)
    own = getattr(sampler, "sampler", None)
    return None if own is None or hasattr(own, "__len__") else _UNSIZED.format(type(own).__name__)


_STATEFUL = "resume of {}: by its own state_dict(); as exact as that is"
_SKIPPED = (
    "resume of {}: by reading and skipping; exact if it yields the same batches in each run and draws only from the "
    "global generators of torch, numpy and python, with the same number of workers. build_dataloader needs no such ifs"
)
_UNSIZED = "resume with the sampler {}: it has no length, so it is read as it goes; exact if it draws from no generator"
