"""The history of the device's memory in a file, for https://docs.pytorch.org/memory_viz."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from vision3d_engine.core.errors import FolderError
from vision3d_engine.core.files import make_folder

_MAX_ENTRIES = 100_000


@contextlib.contextmanager
def memory_snapshot(device: torch.device, path: Path, say: Callable[[str, str], None]) -> Iterator[None]:
    """Record allocations while a block runs, and write them at its end, also when it has no memory left.

    On other devices than CUDA it says that there is nothing to record.

    Args:
        device: whose memory it is about.
        path: the file.
        say: takes a message and its level.
    """
    if device.type != "cuda":
        say(_NOT_HERE.format(device), "WARNING")
        yield
        return
    # torch's own guide to memory snapshots names these two, and there are no public ones.
    torch.cuda.memory._record_memory_history(max_entries=_MAX_ENTRIES)  # noqa: SLF001
    try:
        yield
    finally:
        _write(path, say)
        torch.cuda.memory._record_memory_history(enabled=None)  # noqa: SLF001


def _write(path: Path, say: Callable[[str, str], None]) -> None:
    """Write what was recorded; a file that cannot be written takes no run with it."""
    try:
        make_folder(path.parent)
        torch.cuda.memory._dump_snapshot(str(path))  # noqa: SLF001
    except (OSError, RuntimeError, FolderError) as error:
        say(
            f"the memory snapshot '{path}' cannot be written: {error}. Free some space, or choose another folder",
            "ERROR",
        )
    else:
        say(f"the memory snapshot is '{path}': drop it on https://docs.pytorch.org/memory_viz", "INFO")


_NOT_HERE = "trainer.memory_snapshot is on, and the device is {}: only the memory of CUDA devices is recorded"
