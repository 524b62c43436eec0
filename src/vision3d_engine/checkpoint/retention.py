"""Which checkpoint files may go: a pure function of their names and scores."""

import math
import re
from collections.abc import Iterable, Mapping

# The file that --resume goes on from, and the one before it, which is used when the newest is damaged.
NEWEST, PREVIOUS = "checkpoint.pth", "checkpoint.prev.pth"
_UNSAFE = re.compile(r"[^\w.+=@-]+")
_EPOCH_FILE = re.compile(r"epoch-(\d+)\.pth")


def epoch_of(name: str) -> int | None:
    """Return the epoch of ``epoch-N.pth``, None for any other name."""
    match = _EPOCH_FILE.fullmatch(name)
    return int(match.group(1)) if match else None


def epoch_files(names: Iterable[str]) -> list[str]:
    """Return the names of the form ``epoch-N.pth``, each once, oldest first."""
    epochs = {name: epoch for name in names if (epoch := epoch_of(name)) is not None}
    return sorted(epochs, key=lambda name: epochs[name])


def outdated(
    names: Iterable[str],
    keep_latest: int,
    *,
    keep_every: int = 0,
    keep_best: int = 0,
    scores: Mapping[str, Mapping[int, float]] | None = None,
    largest: Mapping[str, bool] | None = None,
) -> list[str]:
    """Return the epoch files to remove.

    Only ``epoch-N.pth`` is ever returned: best models, ``checkpoint.pth`` and files of others stay.

    Args:
        names: files that this run has written.
        keep_latest: how many of the newest epochs stay; 0 or less keeps all.
        keep_every: every n-th epoch stays too; 0 for none.
        keep_best: of each metric so many epochs with the best scores stay too.
        scores: by metric, the score of each epoch; nan is never good, and an epoch without a file does not count.
        largest: by metric, whether more is better.
    """
    if keep_latest <= 0:
        return []
    files = epoch_files(names)
    epochs = {name: epoch_of(name) or 0 for name in files}
    stays = {epoch for epoch in epochs.values() if keep_every > 0 and epoch % keep_every == 0}
    for metric, found in (scores or {}).items():
        sign = -1 if (largest or {}).get(metric, True) else 1
        there = [
            (sign * found[epoch], epoch) for epoch in epochs.values() if not math.isnan(found.get(epoch, math.nan))
        ]
        stays.update(epoch for _, epoch in sorted(there)[:keep_best])
    return [name for name in files[:-keep_latest] if epochs[name] not in stays]


def best_name(metric: str) -> str:
    """Return the file name of the best model by a metric, whose name may hold characters that file names may not.

    Letters of all scripts stay.
    """
    return f"best_{_UNSAFE.sub('_', metric)}.pth"


def is_run_file(name: str) -> bool:
    """Tell whether a file of a checkpoint folder is one that a run writes by itself."""
    return re.fullmatch(r"epoch-\d+\.pth|(checkpoint(\.prev)?|best_.+|crash)\.pth(\.damaged)?", name) is not None
