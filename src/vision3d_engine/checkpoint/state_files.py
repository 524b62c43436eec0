"""From a state in use to a file: a copy is taken at once, and checked and written later; on one process or on all."""

import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from vision3d_engine.checkpoint.files import write_checkpoint
from vision3d_engine.checkpoint.shard_folders import folders_of, free_folder, remove_unused
from vision3d_engine.checkpoint.snapshot import Buffers, Snapshot
from vision3d_engine.core.errors import NonFiniteError, shortened
from vision3d_engine.distributed.parallel.base import Parallel
from vision3d_engine.distributed.parallel.shards import Shard, take_out
from vision3d_engine.distributed.processes import is_master

Late = Callable[[], Mapping[str, Any]]
#: where a file holds weights: those that were validated, and those that are trained where these are others
WEIGHTS = ("model", "raw_model")


class StateFiles:
    """Writes states into the checkpoint folder: the main process one file, which holds all but what is spread.

    Of what is spread over processes, each writes its shards into a folder that the file names. All processes then call
    the same methods in the same order, and a failure of one is raised on all.

    Args:
        folder: the checkpoint folder.
        parallel: how processes share the model; its `ShardStore` is there once the model is registered, or never.
        advice: returns what to do about weights that are not finite, given total steps.
    """

    def __init__(self, folder: Path, parallel: Parallel, advice: Callable[[int], str]) -> None:
        self._folder, self._parallel, self._buffers = folder, parallel, Buffers()
        self._advice = advice

    @property
    def writes_here(self) -> bool:
        """Whether this process takes part."""
        return is_master() or self._parallel.store is not None

    def prepare(
        self, filename: str, state: Mapping[str, Any], parameters: set[str], keep_old_as: str | None
    ) -> Callable[[Late], None]:
        """Copy a state to the host, and return the function that writes the copy; it may be called in a thread.

        The function is given another one, which returns entries that are known only when the file is written.

        Args:
            filename: name of the file.
            state: with the model's state under ``model``, and under ``raw_model`` if an average was validated.
            parameters: names of the model's parameters, which must be finite.
            keep_old_as: the name under which the file that was there before stays; None for none.

        Raises:
            CheckpointError: for a value that a checkpoint cannot hold, named by its key path.
        """
        shards: dict[str, Shard] = {}
        if self._parallel.store is not None:
            state, shards = take_out(state)
            state = state if is_master() else {"metadata": state["metadata"]}
        copy = Snapshot({**state, "shards": {path: shard.part for path, shard in shards.items()}}, self._buffers)

        def write(late: Late) -> None:
            with copy as kept:
                parts = kept.pop("shards")
                on_host = {path: shard._replace(part=parts[path]) for path, shard in shards.items()}
                self._refuse_non_finite(filename, kept, on_host, parameters)
                pointer = self._write_shards(filename, kept["metadata"], on_host)
                failure = self._write_file(filename, {**kept, **late(), **pointer}, keep_old_as)
                if (failure := self._gather(failure)[0]) is not None:
                    raise failure

        return write

    def _gather(self, value: Any) -> list[Any]:
        return [value] if self._parallel.store is None else self._parallel.store.gather(value)

    def _refuse_non_finite(
        self, filename: str, state: Mapping[str, Any], shards: Mapping[str, Shard], parameters: set[str]
    ) -> None:
        """Raise `NonFiniteError` when a weight is not finite on any process."""
        own = [name for part in WEIGHTS for name in non_finite(_held_of(part, state, shards, parameters), parameters)]
        if wrong := list(dict.fromkeys(name for names in self._gather(own) for name in names)):
            advice = self._advice(int(state["metadata"].get("total_steps", 0)))
            message = f"'{filename}' is not saved, so that it replaces no good file: not finite are {shortened(wrong)}"
            raise NonFiniteError(f"{message}. {advice}" if advice else message)

    def _write_shards(self, filename: str, metadata: Mapping[str, Any], shards: Mapping[str, Shard]) -> dict[str, Any]:
        """Write the shards, and return what the file says of them."""
        if self._parallel.store is None:
            return {}
        folder = self._gather(free_folder(self._folder, filename, int(metadata.get("total_steps", 0))))[0]
        checksums = self._parallel.store.write(self._folder / folder, shards)
        dims = {path: shard.dim for path, shard in shards.items()}
        return {"shards": {"folder": folder, "checksums": checksums, "dims": dims}}

    def _write_file(self, filename: str, state: Mapping[str, Any], keep_old_as: str | None) -> Exception | None:
        """Write the main process's file; return what went wrong, in which case the shards are gone too."""
        if not is_master():
            return None
        try:
            write_checkpoint(self._folder / filename, state, self._folder / keep_old_as if keep_old_as else None)
        except Exception as error:  # noqa: BLE001  all processes raise it
            if "shards" in state:
                shutil.rmtree(self._folder / state["shards"]["folder"], ignore_errors=True)
            return error
        if "shards" in state:
            remove_unused(self._folder, filename, filter(None, (filename, keep_old_as)))
        return None

    def remove(self, filename: str) -> None:
        """Remove a file and its folders of shards; the main process does it."""
        if is_master():
            (self._folder / filename).unlink(missing_ok=True)
            for path in folders_of(self._folder, filename):
                shutil.rmtree(path, ignore_errors=True)


def _held_of(part: str, state: Mapping[str, Any], shards: Mapping[str, Shard], parameters: set[str]) -> dict[str, Any]:
    """Return what this process holds of the weights in a part of a state, where shards have been taken out."""
    local = {name: shards[path].part for name in parameters if (path := f"['{part}'][{name!r}]") in shards}
    return {**state.get(part, {}), **local}


def non_finite(state: Mapping[str, Any], parameters: Iterable[str]) -> list[str]:
    """Return the names of parameters, and of running means of norms, that are not finite in a model's state.

    Other buffers may be infinite on purpose, such as the mask of an attention.
    """
    judged = {*parameters, *(key for key in state if key.endswith(("running_mean", "running_var")))}
    tensors = {key: state[key] for key in state if key in judged and isinstance(state[key], torch.Tensor)}
    return [key for key, tensor in tensors.items() if not (tensor.is_meta or torch.isfinite(tensor).all())]
