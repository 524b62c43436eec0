"""Files and folders: made when missing, written whole or not at all."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from vision3d_engine.core.errors import FolderError


def make_folder(path: str | Path) -> Path:
    """Make a folder and its parents; raise `FolderError` with the reason if that, or writing into it, is impossible."""
    folder = Path(path).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        message = (
            f"cannot write into the folder '{folder}': {error.strerror or error}. "
            "Set exp.output_dir to a folder that you may write to"
        )
        raise FolderError(message) from error


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[IO[bytes]]:
    """Open a temporary file beside ``path`` that replaces it, durably, when the block ends without an error.

    The temporary file lies in the same folder, since a rename is atomic only within one file system; file and folder
    are synced, since a rename may otherwise reach the disk before the data does.
    """
    path = Path(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o666 & ~_umask())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _umask() -> int:
    """Return the process's umask; it can be read only by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    """Flush a folder's entries; file systems that cannot (some network ones) are left alone."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
