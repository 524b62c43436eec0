"""The checkpoints of one run: what is saved under which name, which models are best, which files go."""

import math
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import nn

from vision3d_engine.checkpoint.files import find_checkpoint, read_checkpoint, write_checkpoint
from vision3d_engine.checkpoint.folders import folders_of, free_folder, remove_unused
from vision3d_engine.checkpoint.parts import (
    load_model,
    load_part,
    model_state,
    non_finite,
    parameter_names,
    refuse_non_finite,
)
from vision3d_engine.checkpoint.retention import best_name, epoch_files, outdated
from vision3d_engine.checkpoint.snapshot import Buffers, Snapshot
from vision3d_engine.checkpoint.writer import FileWriter
from vision3d_engine.core.errors import CheckpointError, EngineError, FolderError, RegistrationError
from vision3d_engine.distributed.parallel.base import Parallel
from vision3d_engine.distributed.parallel.shards import Shard, take_out
from vision3d_engine.distributed.processes import is_master
from vision3d_engine.distributed.world import World

# The file that --resume goes on from, and the one before it, which is used when the newest is damaged.
NEWEST, PREVIOUS = "checkpoint.pth", "checkpoint.prev.pth"


class CheckpointManager:
    """Saves, loads, selects and removes the checkpoints in one folder.

    Only the main process writes; of a model that is spread over processes each writes its part into a folder beside
    the file, so that all of them must call the same methods.

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
        parallel: how the model is spread over processes; None when it is not.
    """

    def __init__(  # noqa: PLR0913  what to keep, how to write and whom to tell
        self,
        checkpoint_dir: str | Path,
        save_latest_models: int = -1,
        *,
        keep_best: int = 0,
        keep_every: int = 0,
        in_background: bool = False,
        warn: Callable[[str], None] | None = None,
        tolerated: tuple[type[EngineError], ...] = (),
        parallel: Parallel | None = None,
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
        self._parallel = parallel or Parallel(World(torch.device("cpu")))

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
        if not is_master() and self._parallel.store is None:
            return
        self._tell_failures()
        parts = {"optimizer": optimizer, "scheduler": scheduler, "ckpt_manager": self if save_ckpt_manager else None}
        state: dict[str, Any] = {"metadata": dict(metadata), "model": model_state(model)}
        state |= {name: part.state_dict() for name, part in parts.items() if part is not None}
        write = self._write if self._parallel.store is None else self._write_shards
        job = partial(write, filename, self._copy(state | dict(extra or {})), parameter_names(model))
        self._saved = epoch_files([*self._saved, filename])
        remove = self._outdated() if clean_checkpoints else []
        self._writer.submit(partial(self._run, job, remove))
        self._saved = [name for name in self._saved if name not in remove]

    def _copy(self, state: dict[str, Any]) -> "_Copy":
        """Copy a state to the host; of a spread one, the main process also what is not spread."""
        if self._parallel.store is None:
            return _Copy(Snapshot(state, self._buffers), Snapshot({}, self._buffers), {})
        kept, shards = take_out(state)
        parts = Snapshot({path: shard.part for path, shard in shards.items()}, self._buffers)
        kept = kept if is_master() else {"metadata": kept["metadata"], "model": {}}
        return _Copy(Snapshot(kept, self._buffers), parts, shards)

    def _run(self, write: Callable[[], None], remove: Sequence[str]) -> None:
        """Write a file, then remove those that it makes outdated; runs in the writer's thread."""
        write()
        for name in remove if is_master() else ():
            self._remove(name)

    def _write(self, filename: str, copy: "_Copy", parameters: set[str]) -> None:
        """Write a state that one process holds."""
        with copy:
            state = copy.state.state()
            refuse_non_finite(non_finite(state["model"], parameters), filename)
            self._write_file(filename, state)

    def _write_shards(self, filename: str, copy: "_Copy", parameters: set[str]) -> None:
        """Write a state that is spread: each process its part, then the main one the file that points to them."""
        with copy:
            state, shards = copy.state.state(), copy.shards_on_host()
            refuse_non_finite(self._non_finite_anywhere(state["model"], shards, parameters), filename)
            name = free_folder(self._folder, filename, int(state["metadata"].get("total_steps", 0)))
            folder = self._parallel.store.gather(name)[0]
            checksums = self._parallel.store.write(self._folder / folder, shards)
            if is_master():
                dims = {path: shard.dim for path, shard in shards.items()}
                pointer = {"folder": folder, "checksums": checksums, "dims": dims}
                self._write_file(filename, state | {"shards": pointer})
                remove_unused(self._folder, filename, (filename, PREVIOUS) if filename == NEWEST else (filename,))

    def _non_finite_anywhere(
        self, model: Mapping[str, Any], shards: Mapping[str, Shard], parameters: set[str]
    ) -> list[str]:
        """Return the names of weights that are not finite on any process."""
        whole = {name: value for name, value in model.items() if not value.is_meta}
        paths = {name: f"['model'][{name!r}]" for name in parameters}
        own = {name: shards[path].part for name, path in paths.items() if path in shards}
        found = self._parallel.store.gather(non_finite(whole | own, parameters))
        return sorted({name for names in found for name in names})

    def _write_file(self, filename: str, state: Mapping[str, Any]) -> None:
        write_checkpoint(self._folder / filename, state, self._folder / PREVIOUS if filename == NEWEST else None)

    def _remove(self, name: str) -> None:
        """Remove a file and its folders."""
        (self._folder / name).unlink(missing_ok=True)
        for path in folders_of(self._folder, name):
            shutil.rmtree(path, ignore_errors=True)

    def _tell_failures(self) -> None:
        """Warn of a full disk and the like, where the old file survives; raise anything else."""
        for error in self._writer.failures(in_lockstep=self._parallel.store is not None):
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
            self._remove(name)
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
        state = read_checkpoint(path, self._parallel.store)
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
        metric_dict = self._parallel.from_main(dict(metric_dict))
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


class _Copy(NamedTuple):
    """A state on the host, whose memory is given back at the end of a ``with`` block.

    Attributes:
        state: what one process holds.
        parts: this process's parts of spread tensors, by key path.
        shards: where these belong; their own parts are still on the device.
    """

    state: Snapshot
    parts: Snapshot
    shards: dict[str, Shard]

    def shards_on_host(self) -> dict[str, Shard]:
        """Return the shards with their copied parts; waits for the accelerator to finish copying."""
        parts = self.parts.state()
        return {path: shard._replace(part=parts[path]) for path, shard in self.shards.items()}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.state.release()
        self.parts.release()


def metadata_of(state: Mapping[str, Any]) -> dict[str, int]:
    """Return epoch and total steps, from the places where this engine and older ones keep them."""
    found = state.get("metadata") or {"epoch": state.get("epoch", 0), "total_steps": state.get("iteration", 0)}
    return {"epoch": int(found.get("epoch", 0)), "total_steps": int(found.get("total_steps", 0))}
