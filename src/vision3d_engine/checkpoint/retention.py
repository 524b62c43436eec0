"""Which checkpoint files may go: a pure function of their names and scores."""

import math
import re
from collections.abc import Iterable, Mapping

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
    epochs = {epoch_of(name) for name in files}
    best: set[int] = set()
    for metric, found in (scores or {}).items():
        there = {epoch: score for epoch, score in found.items() if epoch in epochs}
        best.update(_best(there, keep_best, (largest or {}).get(metric, True)))
    older = files[:-keep_latest]
    return [name for name in older if not _stays(epoch_of(name) or 0, keep_every, best)]


def _stays(epoch: int, keep_every: int, best: set[int]) -> bool:
    return epoch in best or (keep_every > 0 and epoch % keep_every == 0)


def _best(scores: Mapping[int, float], count: int, largest: bool) -> list[int]:
    """Return the epochs with the best scores; of equal ones the earlier."""
    numbers = {epoch: score for epoch, score in scores.items() if not math.isnan(score)}
    ranked = sorted(numbers, key=lambda epoch: (-numbers[epoch] if largest else numbers[epoch], epoch))
    return ranked[:count]


def best_name(metric: str) -> str:
    """Return the file name of the best model by a metric, whose name may hold characters that file names may not."""
    return f"best_{re.sub(r'[^A-Za-z0-9._+=@-]+', '_', metric)}.pth"


def is_run_file(name: str) -> bool:
    """Tell whether a file of a checkpoint folder is one that a run writes by itself."""
    return epoch_of(name) is not None or bool(
        re.fullmatch(r"(checkpoint(\.prev)?|best_.+|crash)\.pth(\.damaged)?", name)
    )
