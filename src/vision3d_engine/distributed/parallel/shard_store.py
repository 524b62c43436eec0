"""Spread tensors in a folder: every process writes its part, and any number of processes reads them back.

Loads slowly: imported where it is needed.
"""

import contextlib
import pickle
import shutil
import warnings
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import tensor as dtensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import DeviceMesh

from vision3d_engine.core.errors import CheckpointError, DamagedCheckpointError, FolderError
from vision3d_engine.core.files import sync_folder
from vision3d_engine.distributed.parallel.shards import Shard

_CHUNK = 1 << 24
_METADATA = ".metadata"
# What torch.distributed.checkpoint pickles into its metadata: descriptions of tensors and their places.
_PLAIN_CLASSES = {
    "torch.distributed.checkpoint.metadata": {
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorStorageMetadata",
        "TensorProperties",
        "ChunkStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo", "_StoragePrefix"},
    "torch.serialization": {"_get_layout"},
    "pathlib": {"PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"},
    "torch": {"Size", *(name for name, value in vars(torch).items() if isinstance(value, torch.dtype))},
}


class ShardStore:
    """Writes and reads spread tensors through ``torch.distributed.checkpoint``; every method is called by all.

    It has a process group of its own on the CPU, so that a thread may write while steps exchange gradients; only one
    thread may use it at a time.

    Args:
        mesh: the processes and devices that tensors are spread over.
    """

    def __init__(self, mesh: Any) -> None:
        self._mesh = mesh
        self._group: Any = dist.new_group(backend="gloo")
        self._host_mesh = DeviceMesh.from_group(self._group, "cpu")
        self._rank = dist.get_rank()
        self._size = dist.get_world_size()

    def gather(self, value: Any) -> list[Any]:
        """Return the picklable values of all processes in rank order; waits for them.

        Raises:
            CheckpointError: when one of them has gone.
        """
        values: list[Any] = [None] * self._size
        with _noticing_the_gone():
            dist.all_gather_object(values, value, group=self._group)
        return values

    def write(self, folder: Path, shards: Mapping[str, Shard]) -> dict[str, int]:
        """Write shards, whose parts lie on the host, and return the checksum of every file.

        Raises:
            FolderError: on all processes, when one of them cannot write; nothing is left.
            CheckpointError: when one of them has gone.
        """
        try:
            # Several writer threads may lose an error, and with it a tensor (pytorch#191391).
            writer = FileSystemWriter(folder, thread_count=1, sync_files=True)
            with _noticing_the_gone():
                tensors: dict[str, Any] = {path: self._on_host(shard) for path, shard in shards.items()}
                save(tensors, storage_writer=writer, process_group=self._group)
        except CheckpointException as error:
            if self._rank == 0:
                shutil.rmtree(folder, ignore_errors=True)
            reasons = {str(failure[0]) for failure in error.failures.values()}
            message = f"cannot write '{folder}': {'; '.join(sorted(reasons))}; the files before it stay as they were"
            raise FolderError(message) from error
        return self._checksums(folder)

    def _checksums(self, folder: Path) -> dict[str, int]:
        """Return the checksums of all files, each computed by the process that wrote it."""
        names = [path.name for path in folder.glob(f"__{self._rank}_*")] + [_METADATA] * (self._rank == 0)
        found = self.gather({name: _checksum(folder / name) for name in names})
        sync_folder(folder)
        return {name: checksum for sums in found for name, checksum in sums.items()}

    def _on_host(self, shard: Shard) -> torch.Tensor:
        placements = [_placement(shard.dim)]
        part, shape = shard.part, torch.Size(shard.shape)
        return dtensor.DTensor.from_local(part, self._host_mesh, placements, shape=shape, stride=shard.stride)

    def read(
        self, folder: Path, wanted: Mapping[str, torch.Tensor], dims: Mapping[str, int | None], sums: Mapping[str, int]
    ) -> dict[str, torch.Tensor]:
        """Return the tensors that are described, spread along ``dims`` over the processes that are there now, by path.

        Raises:
            DamagedCheckpointError: on all processes, when a file is missing or its checksum is wrong.
        """
        found = self.gather(_damaged(folder, list(sums)[self._rank :: self._size], sums))
        _refuse_damage(folder, [name for names in found for name in names])
        tensors: dict[str, Any] = {}
        for path, each in wanted.items():
            placements = [_placement(dims.get(path))]
            tensors[path] = dtensor.zeros(each.shape, dtype=each.dtype, device_mesh=self._mesh, placements=placements)
        _load(tensors, folder, process_group=self._group)
        return tensors


@contextlib.contextmanager
def _noticing_the_gone() -> Iterator[None]:
    """Say what it means when an exchange fails."""
    try:
        yield
    except RuntimeError as error:
        message = f"a process has gone while its part of a checkpoint was awaited; the files before it stay ({error})"
        raise CheckpointError(message) from error


def read_whole(folder: Path, wanted: Mapping[str, torch.Tensor], sums: Mapping[str, int]) -> dict[str, torch.Tensor]:
    """Return whole tensors on the host by key path, as `ShardStore.read`; needs no process group."""
    _refuse_damage(folder, _damaged(folder, list(sums), sums))
    tensors = {path: torch.empty(each.shape, dtype=each.dtype) for path, each in wanted.items()}
    _load(tensors, folder, no_dist=True)
    return tensors


class _PlainReader(FileSystemReader):
    """Reads the metadata as data: a pickle that may name harmless classes only (pytorch#189308)."""

    def read_metadata(self, *args: Any, **options: Any) -> Any:
        with (Path(self.path) / _METADATA).open("rb") as file:
            metadata = _PlainUnpickler(file).load()
        metadata.storage_meta.load_id = self.load_id
        return metadata


def _placement(dim: int | None) -> Any:
    return dtensor.Replicate() if dim is None else dtensor.Shard(dim)


def _load(tensors: dict[str, Any], folder: Path, **how: Any) -> None:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # on one process, as is meant
            load(tensors, storage_reader=_PlainReader(folder), **how)
    except (CheckpointException, RuntimeError, pickle.UnpicklingError, OSError) as error:
        message = f"'{folder}' cannot be read: {error}. It is damaged or of another file; use another checkpoint"
        raise DamagedCheckpointError(message) from error


class _PlainUnpickler(pickle.Unpickler):
    """Unpickles descriptions of tensors and nothing that could run code."""

    def find_class(self, module: str, name: str) -> Any:
        if name not in _PLAIN_CLASSES.get(module, ()):
            message = f"its metadata names {module}.{name}, whose loading could run code, so it is refused"
            raise pickle.UnpicklingError(message)
        return super().find_class(module, name)


def _damaged(folder: Path, names: list[str], sums: Mapping[str, int]) -> list[str]:
    """Return the files that are missing or whose checksum is wrong."""
    return [name for name in names if not (folder / name).is_file() or _checksum(folder / name) != sums[name]]


def _refuse_damage(folder: Path, wrong: list[str]) -> None:
    if not folder.is_dir():
        message = f"the folder '{folder}' is missing, which holds the tensors of the checkpoint; keep both together"
        raise DamagedCheckpointError(message)
    if wrong:
        message = f"'{folder}' is damaged: {', '.join(wrong)} missing or with a wrong checksum; use another one"
        raise DamagedCheckpointError(message)


def _checksum(path: Path) -> int:
    """Return the CRC-32 of a file."""
    total = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            total = zlib.crc32(chunk, total)
    return total
