"""Files and folders: made when missing, written whole or not at all."""

import contextlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from vision3d_engine.core.errors import FolderError


def absolute_path(path: str | Path) -> Path:
    """Return a path that stays the same file when the process changes its working folder; ``~`` is the home folder."""
    with contextlib.suppress(RuntimeError):  # a name that begins with ~ and is nobody's home
        path = Path(path).expanduser()
    return Path(path).absolute()


def make_folder(path: str | Path) -> Path:
    """Make a folder and its parents, and return its absolute path.

    Raises:
        FolderError: with the reason, if that, or writing into it, is impossible.
    """
    folder = absolute_path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        message = (
            f"cannot write into the folder '{folder}': {error.strerror or error}. "
            "Make space there, allow to write there, or set exp.output_dir to another folder"
        )
        raise FolderError(message) from error


@contextlib.contextmanager
def atomic_write(path: str | Path, keep_old_as: Path | None = None) -> Iterator[IO[bytes]]:
    """Open a temporary file beside ``path`` that replaces it, durably, when the block ends without an error.

    With ``keep_old_as`` the replaced file stays under that name; at no moment is there no file under ``path``. The
    temporary file lies in the same folder, since a rename is atomic only within one file system; file and folder are
    synced, since a rename may otherwise reach the disk before the data does.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if keep_old_as is not None and path.exists():
            _second_name(path, keep_old_as)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


class GrowingFile:
    """A file that grows by whole pieces: what is added is with the operating system, not in a buffer of ours.

    Args:
        path: the file; made, and opened for the whole run, with the first piece.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = absolute_path(path)
        self._file: IO[bytes] | None = None

    @property
    def is_open(self) -> bool:
        """Whether something was added since the file was made or closed."""
        return self._file is not None

    def add(self, piece: bytes) -> None:
        """Add a piece.

        Raises:
            OSError: when the disk is full; then the file is as it was before.
        """
        if self._file is None:
            self._file = self.path.open("ab", buffering=0)
        end, rest = self._file.seek(0, os.SEEK_END), memoryview(piece)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            self._file.truncate(end)
            raise

    def sync(self) -> None:
        """Wait until what was added is on the disk, and not only with the operating system.

        Raises:
            OSError: when the disk is full or has failed.
        """
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; a later piece opens it again."""
        file, self._file = self._file, None
        if file is not None:
            file.close()


def _second_name(path: Path, other: Path) -> None:
    """Give a file a second name, replacing what has it; file systems without hard links get a copy."""
    temporary = other.with_name(f".{other.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
    except OSError:
        shutil.copy2(path, temporary)
    temporary.replace(other)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries; file systems that cannot (some network ones) are left alone."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
