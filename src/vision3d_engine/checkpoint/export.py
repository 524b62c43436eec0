"""What a checkpoint holds, and its weights as a safetensors file for other programs."""

import time
from pathlib import Path

from vision3d_engine.checkpoint.files import read_checkpoint
from vision3d_engine.checkpoint.parts import weights_of


def export_weights(source: Path, target: Path) -> int:
    """Write the weights of a checkpoint as safetensors and return how many tensors there are.

    Tensors that share memory are written as copies of their own, since the format has no sharing.
    """
    from safetensors.torch import save_file

    weights = {
        key: value.clone().contiguous() for key, value in weights_of(read_checkpoint(source), str(source)).items()
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, target)
    return len(weights)


def describe_checkpoint(path: Path) -> str:
    """Return what is in a checkpoint, as lines: date, size, moment, parts, and the shape of every weight."""
    state = read_checkpoint(path)
    weights = weights_of(state, str(path))
    numbers = sum(value.numel() for value in weights.values())
    stat = path.stat()
    lines = [
        f"{path}, {stat.st_size:,} bytes, written {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(stat.st_mtime))}"
    ]
    lines += [f"{key}: {value}" for key, value in state.get("metadata", {}).items()]
    lines += [f"parts: {', '.join(map(str, state))}", f"weights: {len(weights)} tensors, {numbers:,} numbers"]
    lines += [
        f"  {key} {tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}" for key, value in weights.items()
    ]
    return "\n".join(lines)
