"""What a checkpoint holds, its weights as a safetensors file for other programs, and a sharded one as one file."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vision3d_engine.checkpoint.files import read_checkpoint, write_checkpoint, written_at
from vision3d_engine.checkpoint.loading import read_weights_file
from vision3d_engine.checkpoint.shard_folders import is_shard_folder, pointer_of
from vision3d_engine.checkpoint.weights import weights_of
from vision3d_engine.core.errors import CheckpointError


def export_weights(source: Path, target: Path) -> int:
    """Write the weights of a checkpoint as safetensors and return how many tensors there are.

    Tensors that share memory are written as copies of their own, since the format has no sharing.
    """
    from safetensors.torch import save_file

    weights = weights_of(read_weights_file(source), str(source))
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.clone().contiguous() for key, value in weights.items()}, target)
    return len(weights)


def consolidate(source: Path, target: Path) -> int:
    """Write the checkpoint of a sharded run as one ordinary file, and return how many numbers its weights have.

    The file holds all that the run saved and resumes on one process or on any number. Everything is read onto the host
    of this one process, which needs no process group.

    Args:
        source: a checkpoint, one of its folders (``....dcp``), or a run whose ``checkpoint.pth`` is meant.
        target: the file to write.

    Raises:
        CheckpointError: when there is nothing to read, or it is damaged.
    """
    path = _checkpoint_of(source)
    state = read_checkpoint(path)
    write_checkpoint(target, state)
    return sum(value.numel() for value in weights_of(state, str(path)).values())


def _checkpoint_of(source: Path) -> Path:
    """Return the file that a person means by a file, a folder of shards, or the folder of a run."""
    candidates = [source, source / "checkpoint.pth", source / "checkpoints" / "checkpoint.pth"]
    if is_shard_folder(source.name):
        candidates += [path for path in source.parent.glob("*.pth") if pointer_of(path) == source.name]
    if path := next((path for path in candidates if path.is_file()), None):
        return path
    message = f"'{source}' has nothing to consolidate: it is no checkpoint, no folder of one, and no run with one"
    raise CheckpointError(message)


def describe_checkpoint(path: Path) -> str:
    """Return what is in a checkpoint, as lines: date, moment, versions, parts, and the shape of every weight.

    Its checksums have been verified when this returns; the SHA-256 is that of the whole file.
    """
    state = read_weights_file(path)
    weights = weights_of(state, str(path))
    size, written = path.stat().st_size, written_at(path)
    lines = [f"{path}, {size:,} bytes, written {written}, checksums of all records are right"]
    with path.open("rb") as file:
        lines += [f"sha256: {hashlib.file_digest(file, 'sha256').hexdigest()}"]
    lines += [f"{key}: {value}" for section in ("metadata", "about") for key, value in _section(state, section).items()]
    data = [f"{key} {value}" for key, value in _section(state, "fingerprint").items() if value is not None]
    lines += [f"data: {', '.join(data)}"] if data else []
    lines += [f"parts: {', '.join(map(str, state))}"] if "model" in state else []
    lines += [f"states: {', '.join(state['states'])}"] if _section(state, "states") else []
    lines += [f"weights: {len(weights)} tensors, {sum(value.numel() for value in weights.values()):,} numbers"]
    lines += [
        f"  {key} {tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}" for key, value in weights.items()
    ]
    return "\n".join(lines)


def _section(state: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    return state[name] if isinstance(state.get(name), Mapping) else {}
