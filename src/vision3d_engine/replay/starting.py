"""Where a replay starts: at the newest checkpoint of the run before the step, or at its beginning."""

import json
import pickle
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from vision3d_engine.replay.plan import Target

_COUNTERS = ("total_steps", "epoch", "trained", "is_open", "is_trained")


@dataclass(frozen=True)
class Start:
    """Where a replay starts.

    Attributes:
        path: a checkpoint with all that a resume needs; None for the beginning of the run.
        step: training batches behind it.
        processes: how many the run had there; 0 where that is not known.
        run: folder of the run; in the script that of the trainer which makes the step.
        is_next: whether the step to replay is the first behind it.
    """

    path: Path | None
    step: int
    processes: int
    run: Path
    is_next: bool = True

    def __str__(self) -> str:
        return "the beginning of the run" if self.path is None else f"{self.path.name} (step {self.step})"


def start_before(target: Target, checkpoints: Path, run: Path) -> Start:
    """Return the newest start before a step.

    Args:
        target: the step.
        checkpoints: the checkpoints of the run.
        run: its folder.
    """
    found = [
        replace(start, is_next=target.is_next(progress))
        for start, progress in _starts(checkpoints, run)
        if target.is_after(progress)
    ]
    is_first = 1 in {target.step, target.iteration if target.epoch == 1 else None}
    return max(found, key=lambda start: start.step, default=_beginning(run, is_first))


def newest_start(checkpoints: Path, run: Path) -> Start:
    """Return where a run stands: its newest checkpoint."""
    starts = (start for start, _ in _starts(checkpoints, run))
    return max(starts, key=lambda start: start.step, default=_beginning(run))


def _beginning(run: Path, is_next: bool = False) -> Start:
    return Start(None, 0, _recorded_processes(run), run, is_next)


def _starts(folder: Path, run: Path) -> Iterator[tuple[Start, Mapping[str, Any]]]:
    """Yield what a run can go on from, with its counters; what cannot be read is passed over."""
    for path in folder.glob("*.pth"):
        with suppress(OSError, RuntimeError, pickle.UnpicklingError, EOFError, ValueError):
            state = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
            if progress := _counters_in(state):
                yield Start(path, progress["total_steps"], _processes_in(state), run), progress


def _counters_in(state: Any) -> Mapping[str, Any]:
    """Return the counters of a checkpoint that a run goes on from; empty for a file of any other kind."""
    progress = _mapping_at("progress", state)
    is_whole = bool(_mapping_at("optimizer", state)) and all(isinstance(progress.get(key), int) for key in _COUNTERS)
    return progress if is_whole else {}


def _mapping_at(key: str, state: Any) -> Mapping[str, Any]:
    """Return what a file holds by a name, where both are mappings; else an empty one."""
    part = state.get(key) if isinstance(state, Mapping) else None
    return part if isinstance(part, Mapping) else {}


def _processes_in(state: Any) -> int:
    return _mapping_at("about", state).get("processes", 0)


def _recorded_processes(output: Path) -> int:
    with suppress(OSError, ValueError):
        return int(json.loads((output / "env.json").read_text()).get("processes", 0))
    return 0


def newest_counters(checkpoints: Path) -> Mapping[str, Any]:
    """Return the counters of the newest checkpoint that a run goes on from; empty where there is none."""
    return max(
        (counters for _, counters in _starts(checkpoints, checkpoints)),
        key=lambda each: each["total_steps"],
        default={},
    )
