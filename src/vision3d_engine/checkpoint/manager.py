"""The checkpoints of one run: what is saved under which name, which models are best, which files go."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from vision3d_engine.checkpoint.files import find_checkpoint, read_checkpoint, write_checkpoint
from vision3d_engine.checkpoint.parts import check_finite, load_model, load_part, model_state, parameter_names
from vision3d_engine.checkpoint.retention import best_name, epoch_files, outdated
from vision3d_engine.checkpoint.snapshot import Buffers, Snapshot
from vision3d_engine.checkpoint.writer import FileWriter
from vision3d_engine.core.errors import CheckpointError, EngineError, FolderError, RegistrationError
from vision3d_engine.distributed.world import is_master

# The file that --resume goes on from, and the one before it, which is used when the newest is damaged.
NEWEST, PREVIOUS = "checkpoint.pth", "checkpoint.prev.pth"


class CheckpointManager:
    """Saves, loads, selects and removes the checkpoints in one folder; only the main process writes.

    A state is copied to the host when it is saved; with ``in_background`` a thread checks and writes the copy. What
    goes wrong there is told by the next save (a full disk by ``warn``, anything else by an exception) and by `join`.

    Args:
        checkpoint_dir: the folder; made by the first save.
        save_latest_models: how many ``epoch-N.pth`` files to keep; 0 or less keeps all.
        keep_best: of each metric, so many epochs with the best scores stay beyond the latest.
        keep_every: every n-th epoch stays beyond the latest; 0 for none.
        in_background: write in a thread.
        warn: told of a write that failed in the background while the old file survives.
        tolerated: kinds of failures that are only told; a full disk always is, until `join`. Others are raised.
    """

    def __init__(
        self,
        checkpoint_dir: str | Path,
        save_latest_models: int = -1,
        *,
        keep_best: int = 0,
        keep_every: int = 0,
        in_background: bool = False,
        warn: Callable[[str], None] | None = None,
        tolerated: tuple[type[EngineError], ...] = (),
    ) -> None:
        self._folder = Path(checkpoint_dir)
        self._keep = {"keep_latest": save_latest_models, "keep_best": keep_best, "keep_every": keep_every}
        self._saved: list[str] = []
        self._best: dict[str, dict[str, Any]] = {}
        self._scores: dict[str, dict[int, float]] = {}
        self._writer = FileWriter(in_background)
        self._buffers = Buffers()
        self._warn = warn or warnings.warn
        self._tolerated = tolerated

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics that select best models."""
        return list(self._best)

    def state_dict(self) -> dict[str, Any]:
        """Return the names of the epoch files, the best scores and the score of each epoch."""
        return {
            "saved_checkpoints": list(self._saved),
            "best_scores": {metric: dict(best) for metric, best in self._best.items()},
            "scores": {metric: dict(scores) for metric, scores in self._scores.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over names and scores; full paths, as the 2022 engine stored them, are reduced to names.

        A metric that was not registered in this run is left out.
        """
        self._saved = epoch_files(Path(name).name for name in state["saved_checkpoints"])
        for metric, best in state["best_scores"].items():
            if metric in self._best and best["score"] is not None:
                self._best[metric]["score"] = float(best["score"])
        self._scores = {metric: dict(scores) for metric, scores in state.get("scores", {}).items()}

    # ------------------------------------------------------------------------------------------- saving

    def save_checkpoint(  # noqa: PLR0913, PLR0917  the published signature, and extra
        self,
        filename: str,
        metadata: Mapping[str, Any],
        model: nn.Module,
        optimizer: Any = None,
        scheduler: Any = None,
        save_ckpt_manager: bool = False,
        clean_checkpoints: bool = True,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """Save one file with the model, the other parts that are given and extra data; then remove outdated files.

        Raises:
            CheckpointError: when a part's state holds python objects, named by key path.
            FolderError: when the folder cannot be written (in the background: by `join`).
            NonFiniteError: when a weight is not finite (in the background: by the next save, or by `join`).
        """
        if not is_master():
            return
        self._tell_failures()
        parts = {"optimizer": optimizer, "scheduler": scheduler, "ckpt_manager": self if save_ckpt_manager else None}
        state: dict[str, Any] = {"metadata": dict(metadata), "model": model_state(model)}
        state |= {name: part.state_dict() for name, part in parts.items() if part is not None}
        snapshot = Snapshot(state | dict(extra or {}), self._buffers)
        self._saved = epoch_files([*self._saved, filename])
        remove = self._outdated() if clean_checkpoints else []
        self._writer.submit(partial(self._write, filename, snapshot, parameter_names(model), remove))
        self._saved = [name for name in self._saved if name not in remove]

    def _write(self, filename: str, snapshot: Snapshot, parameters: set[str], remove: Sequence[str]) -> None:
        """Write a snapshot and remove what it makes outdated; runs in the writer's thread."""
        try:
            state = snapshot.state()
            check_finite(state["model"], parameters, filename)
            write_checkpoint(self._folder / filename, state, self._folder / PREVIOUS if filename == NEWEST else None)
            for name in remove:
                (self._folder / name).unlink(missing_ok=True)
        finally:
            snapshot.release()

    def _tell_failures(self) -> None:
        """Warn of a full disk and the like, where the old file survives; raise anything else."""
        for error in self._writer.failures():
            if not isinstance(error, (FolderError, *self._tolerated)):
                raise error
            self._warn(f"{error}. Training goes on")

    def join(self) -> None:
        """Wait until all files are written.

        Raises:
            EngineError: when the last one could not be.
        """
        error = self._writer.join()
        self._tell_failures()
        if isinstance(error, self._tolerated):
            self._warn(str(error))
        elif error is not None:
            raise error

    def clean_checkpoints(self) -> None:
        """Remove the epoch files of this run that are outdated; the newest one and best models always stay."""
        for name in self._outdated():
            (self._folder / name).unlink(missing_ok=True)
            self._saved.remove(name)

    def _outdated(self) -> list[str]:
        largest = {metric: best["largest"] for metric, best in self._best.items()}
        scores = {metric: self._scores.get(metric, {}) for metric in self._best}
        return outdated(self._saved, scores=scores, largest=largest, **self._keep)

    # ------------------------------------------------------------------------------------------- loading

    def load_checkpoint(
        self, filename: str | Path, model: nn.Module, optimizer: Any = None, scheduler: Any = None
    ) -> dict[str, int]:
        """Load the parts that are given and return the metadata (``epoch``, ``total_steps``).

        A part that the file does not hold is left as it is.

        Raises:
            CheckpointError: when there is no such file, it cannot be read, or a part does not fit.
        """
        path, state = self.read(filename)
        self.restore(state, str(path), model, optimizer, scheduler)
        return metadata_of(state)

    def read(self, filename: str | Path) -> tuple[Path, dict[str, Any]]:
        """Return the path and the state of a checkpoint with a model, on the host; nothing is changed.

        Raises:
            CheckpointError: when there is no such file, it cannot be read, or it has no model.
        """
        self._writer.join()
        path = find_checkpoint(filename, self._folder)
        state = read_checkpoint(path)
        if "model" not in state:
            message = f"'{path}' has no key 'model' (its keys: {', '.join(map(str, state))})"
            raise CheckpointError(message)
        return path, state

    def restore(
        self, state: Mapping[str, Any], source: str, model: nn.Module, optimizer: Any = None, scheduler: Any = None
    ) -> None:
        """Put a state that was read into the parts.

        Raises:
            CheckpointError: when one does not fit.
        """
        load_model(model, state["model"], source)
        for name, part in (("optimizer", optimizer), ("scheduler", scheduler), ("ckpt_manager", self)):
            if part is not None and name in state:
                load_part(part, state[name], name, source)

    # ------------------------------------------------------------------------------------------- best models

    def add_metric(self, metric: str, largest: bool = True) -> None:
        """Select best models by one more metric."""
        if metric in self._best:
            message = f"best models are already selected on '{metric}'; name each metric once"
            raise RegistrationError(message)
        self._best[metric] = {"score": None, "largest": bool(largest)}

    def update_best_model(
        self, metric_dict: Mapping[str, float], metadata: Mapping[str, Any], model: nn.Module
    ) -> dict[str, float]:
        """Save the model as best on every metric that improved, and return those metrics with their new scores.

        A metric that is not in the dict is passed over; nan is never best.
        """
        for metric in self._best.keys() & metric_dict.keys():
            self._scores.setdefault(metric, {})[int(metadata.get("epoch", 0))] = float(metric_dict[metric])
        improved = {metric: float(metric_dict[metric]) for metric in self._best if self._improves(metric, metric_dict)}
        for metric, score in improved.items():
            self.save_checkpoint(best_name(metric), metadata, model, clean_checkpoints=False)
            self._best[metric]["score"] = score
        return improved

    def _improves(self, metric: str, metric_dict: Mapping[str, float]) -> bool:
        score = float(metric_dict.get(metric, math.nan))
        best = self._best[metric]["score"]
        if math.isnan(score) or best is None:
            return not math.isnan(score)
        return score > best if self._best[metric]["largest"] else score < best


def metadata_of(state: Mapping[str, Any]) -> dict[str, int]:
    """Return epoch and total steps, from the places where this engine and older ones keep them."""
    found = state.get("metadata") or {"epoch": state.get("epoch", 0), "total_steps": state.get("iteration", 0)}
    return {"epoch": int(found.get("epoch", 0)), "total_steps": int(found.get("total_steps", 0))}
