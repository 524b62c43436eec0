"""Which checkpoint files may go: a pure function of their names and scores."""

import math
import re
from collections.abc import Iterable, Mapping
from itertools import pairwise

# The file that --resume goes on from, and the one before it, which is used when the newest is damaged.
NEWEST, PREVIOUS = "checkpoint.pth", "checkpoint.prev.pth"
_UNSAFE = re.compile(r"[^\w.+=@-]+")
_EPOCH_FILE = re.compile(r"epoch-(\d+)\.pth")
_RUN_FILE = re.compile(r"(epoch|replay)-\d+\.pth|(checkpoint(\.prev)?|best_.+|crash)\.pth(\.damaged)?")
_SNAPSHOT = re.compile(r"replay-(\d+)\.pth")


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


def snapshot_name(step: int) -> str:
    """Return the file name of the checkpoint that a replay can start from behind so many training batches."""
    return f"replay-{step:06d}.pth"


def snapshot_step(name: str) -> int | None:
    """Return the training batches behind a checkpoint for replays, None for any other name."""
    match = _SNAPSHOT.fullmatch(name)
    return int(match.group(1)) if match else None


def outdated_snapshots(names: Iterable[str], newest: int) -> list[str]:
    """Return the checkpoints for replays to remove, so that those at doubling distances from the newest stay.

    One goes when from the one before it to the one behind it lie no more steps than from that one to the newest. So the
    number of those that stay grows with the logarithm of the steps, and a replay of a step that lies n steps back runs
    at most n steps again. Those that are later than the newest are of a run that was taken back.

    Args:
        names: files in the folder.
        newest: training batches behind the newest one.
    """
    found = {step: name for name in names if (step := snapshot_step(name)) is not None}
    steps, before, gone = sorted(step for step in found if step <= newest), 0, []
    for step, following in pairwise(steps):
        is_outdated = following - before <= newest - following
        gone += [found[step]] if is_outdated else []
        before = before if is_outdated else step
    return [*gone, *(name for step, name in found.items() if step > newest)]


def best_name(metric: str) -> str:
    """Return the file name of the best model by a metric, whose name may hold characters that file names may not.

    Letters of all scripts stay.
    """
    return f"best_{_UNSAFE.sub('_', metric)}.pth"


def is_run_file(name: str) -> bool:
    """Tell whether a file of a checkpoint folder is one that a run writes by itself."""
    return _RUN_FILE.fullmatch(name) is not None
