"""The checkpoints of one run: what is saved under which name, which models are best, which files go."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from vision3d_engine.checkpoint.files import find_checkpoint, read_checkpoint, write_checkpoint
from vision3d_engine.checkpoint.parts import load_model, load_part, model_state
from vision3d_engine.checkpoint.retention import best_name, epoch_files, outdated
from vision3d_engine.core.errors import CheckpointError, RegistrationError
from vision3d_engine.distributed.world import is_master

# The file that --resume goes on from, and the one before it, which is used when the newest is damaged.
NEWEST, PREVIOUS = "checkpoint.pth", "checkpoint.prev.pth"


class CheckpointManager:
    """Saves, loads, selects and removes the checkpoints in one folder; only the main process writes.

    Args:
        checkpoint_dir: the folder; made by the first save.
        save_latest_models: how many ``epoch-N.pth`` files to keep; 0 or less keeps all.
    """

    def __init__(self, checkpoint_dir: str | Path, save_latest_models: int = -1) -> None:
        self._folder = Path(checkpoint_dir)
        self._keep_latest = save_latest_models
        self._saved: list[str] = []
        self._best: dict[str, dict[str, Any]] = {}

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics that select best models."""
        return list(self._best)

    def state_dict(self) -> dict[str, Any]:
        """Return the names of the epoch files and the best scores."""
        return {"saved_checkpoints": list(self._saved), "best_scores": {k: dict(v) for k, v in self._best.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over names and scores; full paths, as the 2022 engine stored them, are reduced to names.

        A metric that was not registered in this run is left out.
        """
        self._saved = epoch_files(Path(name).name for name in state["saved_checkpoints"])
        for metric, best in state["best_scores"].items():
            if metric in self._best and best["score"] is not None:
                self._best[metric]["score"] = float(best["score"])

    # ------------------------------------------------------------------------------------------- saving

    def save_checkpoint(
        self,
        filename: str,
        metadata: Mapping[str, Any],
        model: nn.Module,
        optimizer: Any = None,
        scheduler: Any = None,
        save_ckpt_manager: bool = False,
        clean_checkpoints: bool = True,
    ) -> None:
        """Write one file with the model, and with the other parts that are given; then remove outdated epoch files.

        Raises:
            CheckpointError: when a part's state holds python objects, named by key path.
            FolderError: when the folder cannot be written.
        """
        if not is_master():
            return
        state: dict[str, Any] = {"metadata": dict(metadata), "model": model_state(model)}
        parts = {"optimizer": optimizer, "scheduler": scheduler, "ckpt_manager": self if save_ckpt_manager else None}
        state |= {name: part.state_dict() for name, part in parts.items() if part is not None}
        keep_old_as = self._folder / PREVIOUS if filename == NEWEST else None
        write_checkpoint(self._folder / filename, state, keep_old_as)
        self._saved = epoch_files([*self._saved, filename])
        if clean_checkpoints:
            self.clean_checkpoints()

    def clean_checkpoints(self) -> None:
        """Remove the epoch files of this run that are outdated; the newest one and best models always stay."""
        for name in outdated(self._saved, self._keep_latest):
            (self._folder / name).unlink(missing_ok=True)
            self._saved.remove(name)

    # ------------------------------------------------------------------------------------------- loading

    def load_checkpoint(
        self, filename: str | Path, model: nn.Module, optimizer: Any = None, scheduler: Any = None
    ) -> dict[str, int]:
        """Load the parts that are given and return the metadata (``epoch``, ``total_steps``).

        A part that the file does not hold is left as it is.

        Raises:
            CheckpointError: when there is no such file, it cannot be read, or a part does not fit.
        """
        path = find_checkpoint(filename, self._folder)
        state = read_checkpoint(path)
        if "model" not in state:
            message = f"'{path}' has no key 'model' (its keys: {', '.join(map(str, state))})"
            raise CheckpointError(message)
        load_model(model, state["model"], str(path))
        for name, part in (("optimizer", optimizer), ("scheduler", scheduler), ("ckpt_manager", self)):
            if part is not None and name in state:
                load_part(part, state[name], name, str(path))
        return _metadata(state)

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


def _metadata(state: Mapping[str, Any]) -> dict[str, int]:
    """Return epoch and total steps, from the places where this engine and older ones keep them."""
    found = state.get("metadata") or {"epoch": state.get("epoch", 0), "total_steps": state.get("iteration", 0)}
    return {"epoch": int(found.get("epoch", 0)), "total_steps": int(found.get("total_steps", 0))}
