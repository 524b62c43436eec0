"""The checkpoints of one run: what is saved under which name, in which order, and which files go."""

import contextlib
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vision3d_engine.checkpoint.best_models import BestModels
from vision3d_engine.checkpoint.files import find_checkpoint, read_checkpoint
from vision3d_engine.checkpoint.loading import load_model, model_state, parameter_names
from vision3d_engine.checkpoint.parts import load_part
from vision3d_engine.checkpoint.retention import NEWEST, PREVIOUS, best_name, epoch_files, outdated
from vision3d_engine.checkpoint.state_files import StateFiles
from vision3d_engine.checkpoint.writer import BackgroundWriter
from vision3d_engine.core.errors import DamagedCheckpointError, EngineError, FolderError
from vision3d_engine.core.files import absolute_path
from vision3d_engine.distributed.parallel.base import Parallel
from vision3d_engine.distributed.world import World


class CheckpointManager:
    """Saves, loads, selects and removes the checkpoints in one folder.

    Only the main process writes; of a model that is spread over processes each writes its part into a folder beside
    the file, so that all of them must call the same methods.

    A state is copied to the host when it is saved; with ``in_background`` a thread checks and writes the copy. What
    goes wrong there is told by the next save (a full disk by ``warn``, anything else by an exception) and by `join`.
    Names and best scores count, and older files are removed, once the new file is on the disk.

    Args:
        checkpoint_dir: the folder; made by the first save.
        save_latest_models: how many ``epoch-N.pth`` files to keep; 0 or less keeps all.
        keep_best: of each metric, so many epochs with the best scores stay beyond the latest.
        keep_every: every n-th epoch stays beyond the latest; 0 for none.
        in_background: write in a thread.
        warn: told of a write that failed in the background while the old file survives.
        tolerated: kinds of failures that are only told; a full disk always is, until `join`. Others are raised.
        parallel: how the model is spread over processes; None when it is not.
        advice: returns what to do about weights that are not finite, given total steps; nothing by default.
        weights: returns what a file holds of a model, its state under ``model``; by default nothing else.
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
        advice: Callable[[int], str] = lambda _: "",
        weights: Callable[[nn.Module], Mapping[str, Any]] = lambda model: {"model": model_state(model)},
    ) -> None:
        self._folder = absolute_path(checkpoint_dir)
        self._keep = {"keep_latest": save_latest_models, "keep_best": keep_best, "keep_every": keep_every}
        self._saved: list[str] = []
        self._failed: dict[str, BaseException] = {}
        self._best = BestModels()
        self._writer = BackgroundWriter(in_background)
        self._tell, self._tolerated = _Teller(warn or warnings.warn, tolerated), tolerated
        self._parallel = parallel or Parallel(World(torch.device("cpu")))
        self._files = StateFiles(self._folder, self._parallel, advice)
        self._weights = weights

    @property
    def metrics(self) -> dict[str, bool]:
        """Names of the metrics that select best models, and whether more is better."""
        return self._best.largest

    @property
    def best(self) -> dict[str, tuple[float | None, int | None]]:
        """By metric, the best score and its epoch; None where there is no file, or the epoch is not known."""
        return self._best.best

    def state_dict(self, scores: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return the epoch files and the best scores, as far as they are on the disk, and the scores of all epochs."""
        scores = self._best.epoch_scores() if scores is None else scores
        return {"saved_checkpoints": list(self._saved), "best_scores": self._best.state_dict(), "scores": scores}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over names and scores; full paths, as the 2022 engine stored them, are reduced to names.

        A metric that was not registered in this run is left out, and so is a best score whose file is not there.
        """
        self._writer.wait()
        self._saved = epoch_files(Path(name).name for name in state["saved_checkpoints"])
        there = {name: one for name, one in state["best_scores"].items() if (self._folder / best_name(name)).is_file()}
        self._best.load_state_dict(there, state.get("scores", {}))

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
        on_saved: Callable[[], object] = lambda: None,
    ) -> None:
        """Save one file with the model, the other parts that are given and extra data; then remove outdated files.

        ``on_saved`` is called once the file is on the disk, in the thread if there is one, on processes that write.
        ``save_ckpt_manager`` saves names and scores as they are when the file is written.

        Raises:
            CheckpointError: when a part's state holds python objects, named by key path.
            FolderError: when the folder cannot be written (in the background: by `join`).
            NonFiniteError: when a weight is not finite (in the background: by the next save, or by `join`).
        """
        if not self._files.writes_here:
            return
        parts = {"optimizer": optimizer, "scheduler": scheduler}
        state = {name: part.state_dict() for name, part in parts.items() if part is not None} | dict(extra or {})
        write = self._prepare(filename, metadata, model, state)
        try:
            self._submit(
                filename, write, save_ckpt_manager, clean_checkpoints, lambda is_written: is_written and on_saved()
            )
        except self._tolerated as error:
            self._tell(error)

    def _prepare(self, filename: str, metadata: Mapping[str, Any], model: nn.Module, state: Mapping[str, Any]) -> Any:
        """Copy a state, and return the function that writes the copy."""
        self._tell_failures()
        state = {"metadata": dict(metadata), **self._weights(model), **state}
        return self._files.prepare(filename, state, parameter_names(model), PREVIOUS if filename == NEWEST else None)

    def _submit(
        self, filename: str, write: Any, with_manager: bool, clean: bool, report: Callable[[bool], object]
    ) -> None:
        """Write a file, and let it count once it is on the disk; what became of it is reported."""
        scores = self._best.epoch_scores()

        def job() -> None:
            try:
                write(lambda: {"ckpt_manager": self.state_dict(scores)} if with_manager else {})
            except BaseException as error:
                self._failed[filename] = error
                report(False)
                raise
            self._failed.pop(filename, None)
            self._saved = epoch_files([*self._saved, filename])
            report(True)
            if clean:
                self._remove_outdated(scores)

        self._writer.submit(job)

    def _remove_outdated(self, scores: Mapping[str, Mapping[int, float]]) -> None:
        """Remove outdated files; one that cannot be removed is tried again the next time."""
        scores = {metric: scores.get(metric, {}) for metric in self._best.largest}
        for name in outdated(self._saved, scores=scores, largest=self._best.largest, **self._keep):
            with contextlib.suppress(OSError):
                self._files.remove(name)
                self._saved = [other for other in self._saved if other != name]

    def _tell_failures(self) -> None:
        """Tell what went wrong in the thread."""
        for error in self._writer.failures(in_lockstep=self._parallel.store is not None):
            self._tell(error)

    def has_failed(self, filename: str) -> bool:
        """Tell whether the last state that was to be saved under a name is not there; once all is written."""
        return filename in self._failed

    def wait(self) -> None:
        """Wait until all files are written; what went wrong is told by the next save and by `join`."""
        self._writer.wait()

    def join(self) -> None:
        """Wait until all files are written.

        Raises:
            EngineError: when the last one could not be.
        """
        error = self._writer.join()
        self._tell_failures()
        if isinstance(error, self._tolerated):
            self._tell(error)
        elif error is not None:
            raise error

    def clean_checkpoints(self) -> None:
        """Remove the epoch files of this run that are outdated; the newest one and best models always stay."""
        self._writer.wait()
        self._remove_outdated(self._best.epoch_scores())

    # ------------------------------------------------------------------------------------------- loading

    def load_checkpoint(
        self, filename: str | Path, model: nn.Module, optimizer: Any = None, scheduler: Any = None
    ) -> dict[str, int]:
        """Load the parts that are given and that the file holds; return the metadata (``epoch``, ``total_steps``).

        Raises:
            CheckpointError: when there is no such file, it cannot be read, or a part does not fit.
        """
        path, state = self.read(filename)
        self.restore(state, str(path), model, optimizer, scheduler)
        return metadata_of(state)

    def read(self, filename: str | Path) -> tuple[Path, dict[str, Any]]:
        """Return the path and the state of a checkpoint with a model, on the host; nothing is changed.

        Raises:
            CheckpointError: as `find_checkpoint` and `read_checkpoint`, or when it has no model.
        """
        path = self.find(filename)
        state = read_checkpoint(path, self._parallel.store)
        if "model" not in state:
            raise DamagedCheckpointError(f"'{path}' has no key 'model' (its keys: {', '.join(map(str, state))})")
        return path, state

    def find(self, filename: str | Path) -> Path:
        """Return the path of a file that is to be read, once all that was saved is written; see `find_checkpoint`."""
        self._writer.wait()
        return find_checkpoint(filename, self._folder, self._failed)

    def restore(
        self, state: Mapping[str, Any], source: str, model: nn.Module, optimizer: Any = None, scheduler: Any = None
    ) -> None:
        """Put a state that was read into the parts; raise `CheckpointError` when one does not fit."""
        load_model(model, state["model"], source)
        for name, part in (("optimizer", optimizer), ("scheduler", scheduler), ("ckpt_manager", self)):
            if part is not None and name in state:
                load_part(part, state[name], name, source)

    def add_metric(self, metric: str, largest: bool = True) -> None:
        """Select best models by one more metric."""
        self._best.add(metric, bool(largest))

    def update_best_model(
        self, metric_dict: Mapping[str, float], metadata: Mapping[str, Any], model: nn.Module, is_of_epoch: bool = True
    ) -> dict[str, float]:
        """Save the model as best on every metric that improved, and return those metrics with their new scores.

        A metric that is not in the dict is passed over; nan is never best. A score whose file cannot be written does
        not count, so that the next good model is saved; a full disk is told by ``warn``, weights that are not finite as
        by `save_checkpoint`. Scores of an epoch, not of a validation within one, say which ``epoch-N.pth`` stay.
        """
        scores = self._best.known(metric_dict)
        scores, improved = self._parallel.from_main((scores, self._best.improved(scores, self._writer.wait)))
        if is_of_epoch:
            self._best.record(scores, int(metadata.get("epoch", 0)))
        return {name: score for name, score in improved.items() if self._save_best(name, score, metadata, model)}

    def _save_best(self, metric: str, score: float, metadata: Mapping[str, Any], model: nn.Module) -> bool:
        """Save the model as the best on a metric; return whether that may have succeeded."""
        name, epoch = best_name(metric), int(metadata.get("epoch", 0))
        report = partial(self._best.report, metric, score, epoch)
        try:
            write = self._prepare(name, metadata, model, {}) if self._files.writes_here else None
            self._best.submitted(metric, score)
            if write is None:
                report(is_written=True)
            else:
                self._submit(name, write, with_manager=False, clean=False, report=report)
        except (FolderError, *self._tolerated) as error:
            self._tell(error)
            return False
        return True


class _Teller:
    """Warns of a full disk and the like, where the old file survives; raises anything else.

    Args:
        warn: is told.
        tolerated: kinds of failures of which the first one alone is told: the files behind it mostly fail alike.
    """

    def __init__(self, warn: Callable[[str], object], tolerated: tuple[type[EngineError], ...]) -> None:
        self._warn, self._tolerated, self._has_told = warn, tolerated, False

    def __call__(self, error: BaseException) -> None:
        """Tell what went wrong."""
        if isinstance(error, FolderError):
            self._warn(f"{error}. Training goes on")
        elif not isinstance(error, self._tolerated):
            raise error
        elif not self._has_told:
            self._has_told = True
            self._warn(f"{error}. This is said once, of further files too")


def metadata_of(state: Mapping[str, Any]) -> dict[str, int]:
    """Return epoch and total steps, from where this engine and older ones keep them, and what else is told."""
    found = state.get("metadata") or {"epoch": state.get("epoch", 0), "total_steps": state.get("iteration", 0)}
    others = {name: int(found[name]) for name in ("updates", "samples") if name in found}
    return {"epoch": int(found.get("epoch", 0)), "total_steps": int(found.get("total_steps", 0)), **others}
