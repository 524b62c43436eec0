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
from vision3d_engine.distributed.parallel.shard_store import ShardStore
from vision3d_engine.distributed.parallel.shards import Shard, take_out
from vision3d_engine.distributed.processes import is_master

Late = Callable[[], Mapping[str, Any]]


class StateFiles:
    """Writes states that one process holds; the main process does it.

    Attributes:
        writes_here: whether this process takes part.
    """

    def __init__(self, folder: Path, buffers: Buffers) -> None:
        self._folder = folder
        self._buffers = buffers
        self.writes_here = is_master()

    def prepare(
        self, filename: str, state: Mapping[str, Any], parameters: set[str], keep_old_as: str | None
    ) -> Callable[[Late], None]:
        """Copy a state to the host, and return the function that writes the copy; it may be called in a thread.

        The function is given another one, which returns entries that are known only when the file is written.

        Args:
            filename: name of the file.
            state: with the model's state under ``model``.
            parameters: names of the model's parameters, which must be finite.
            keep_old_as: the name under which the file that was there before stays; None for none.

        Raises:
            CheckpointError: for a value that a checkpoint cannot hold, named by its key path.
        """
        copy = Snapshot(state, self._buffers)

        def write(late: Late) -> None:
            with copy as kept:
                _refuse_non_finite(non_finite(kept["model"], parameters), filename)
                self._write_file(filename, {**kept, **late()}, keep_old_as)

        return write

    def _write_file(self, filename: str, state: Mapping[str, Any], keep_old_as: str | None) -> None:
        write_checkpoint(self._folder / filename, state, self._folder / keep_old_as if keep_old_as else None)

    def remove(self, filename: str) -> None:
        """Remove a file and its folders of shards; the main process does it."""
        if is_master():
            (self._folder / filename).unlink(missing_ok=True)
            for path in folders_of(self._folder, filename):
                shutil.rmtree(path, ignore_errors=True)


class ShardedStateFiles(StateFiles):
    """Writes states that are spread: each process its shards into a folder, then the main one the file that names it.

    All processes call the same methods in the same order, and a failure of one is raised on all.
    """

    def __init__(self, folder: Path, buffers: Buffers, store: ShardStore) -> None:
        super().__init__(folder, buffers)
        self._store = store
        self.writes_here = True

    def prepare(
        self, filename: str, state: Mapping[str, Any], parameters: set[str], keep_old_as: str | None
    ) -> Callable[[Late], None]:
        """Copy a state to the host, and return the function that writes the copy, as on one process."""
        kept, shards = take_out(state)
        kept = kept if is_master() else {"metadata": kept["metadata"], "model": {}}
        copy = Snapshot(kept, self._buffers)
        parts_copy = Snapshot({path: each.part for path, each in shards.items()}, self._buffers)

        def write(late: Late) -> None:
            with copy as whole, parts_copy as parts:
                on_host = {path: shard._replace(part=parts[path]) for path, shard in shards.items()}
                _refuse_non_finite(self._non_finite_anywhere(whole["model"], on_host, parameters), filename)
                pointer = self._write_shards(filename, whole["metadata"], on_host)
                failure = self._point(filename, {**whole, **late(), "shards": pointer}, keep_old_as)
                if (failure := self._store.gather(failure)[0]) is not None:
                    raise failure

        return write

    def _non_finite_anywhere(
        self, model: Mapping[str, Any], shards: Mapping[str, Shard], parameters: set[str]
    ) -> list[str]:
        """Return the names of weights that are not finite on any process."""
        whole = {name: value for name, value in model.items() if not value.is_meta}
        paths = {name: f"['model'][{name!r}]" for name in parameters}
        local = {name: shards[path].part for name, path in paths.items() if path in shards}
        found = self._store.gather(non_finite(whole | local, parameters))
        return sorted({name for names in found for name in names})

    def _write_shards(self, filename: str, metadata: Mapping[str, Any], shards: Mapping[str, Shard]) -> dict[str, Any]:
        """Write the shards, and return what the file says of them."""
        name = free_folder(self._folder, filename, int(metadata.get("total_steps", 0)))
        folder = self._store.gather(name)[0]
        checksums = self._store.write(self._folder / folder, shards)
        return {"folder": folder, "checksums": checksums, "dims": {path: each.dim for path, each in shards.items()}}

    def _point(self, filename: str, state: Mapping[str, Any], keep_old_as: str | None) -> Exception | None:
        """Write the main process's file; return what went wrong, in which case the shards are gone too."""
        if not is_master():
            return None
        try:
            self._write_file(filename, state, keep_old_as)
        except Exception as error:  # noqa: BLE001  to be raised on all processes
            shutil.rmtree(self._folder / state["shards"]["folder"], ignore_errors=True)
            return error
        remove_unused(self._folder, filename, filter(None, (filename, keep_old_as)))
        return None


def state_files(folder: Path, buffers: Buffers, store: ShardStore | None) -> StateFiles:
    """Return what writes states into a folder: whole ones, or, with a store, those that are spread."""
    return StateFiles(folder, buffers) if store is None else ShardedStateFiles(folder, buffers, store)


def non_finite(state: Mapping[str, Any], parameters: Iterable[str]) -> list[str]:
    """Return the names of parameters, and of running means of norms, that are not finite in a model's state.

    Other buffers may be infinite on purpose, such as the mask of an attention.
    """
    judged = {*parameters, *(key for key in state if key.endswith(("running_mean", "running_var")))}
    return [key for key in state if key in judged and not _is_finite(state[key])]


def _is_finite(value: Any) -> bool:
    return not isinstance(value, torch.Tensor) or bool(torch.isfinite(value).all())


def _refuse_non_finite(wrong: list[str], filename: str) -> None:
    if wrong:
        message = f"'{filename}' is not saved, so that it replaces no good file: not finite are {shortened(wrong)}"
        raise NonFiniteError(message)
