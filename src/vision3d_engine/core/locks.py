"""One run, one folder: a lock that the operating system drops when its process dies."""

import contextlib
import json
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from vision3d_engine.core.errors import FolderInUseError

try:
    import fcntl
except ImportError:  # Windows: no lock, as on file systems without locks
    fcntl = None

_NAME = ".lock"
_HELD: set[Path] = set()


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Keep other runs, also those of this process, out of a folder while a block runs.

    ``lockf`` is used, not ``flock``: data workers inherit the latter, and would keep the folder after a ``kill -9`` of
    the run.

    Raises:
        FolderInUseError: naming who works there.
    """
    folder = folder.absolute()
    if folder in _HELD:
        raise FolderInUseError(_refusal(folder, "a run of this process"))
    with (folder / _NAME).open("a+", encoding="utf-8") as file:
        if not _lock(file):
            raise FolderInUseError(_refusal(folder, _owner(file)))
        _HELD.add(folder)
        try:
            _sign(file)
            yield
        finally:
            _HELD.discard(folder)
            file.truncate(0)


def _sign(file: IO[str]) -> None:
    """Write down who holds the lock."""
    owner = {"pid": os.getpid(), "host": platform.node(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    file.truncate(0)
    file.write(json.dumps(owner))
    file.flush()


def _refusal(folder: Path, owner: str) -> str:
    return f"the folder '{folder}' is in use by {owner}. Wait for it, stop it, or choose another folder"


def _lock(file: IO[str]) -> bool:
    """Lock a file, or do nothing where there are no locks; return False when another process has it."""
    try:
        if fcntl is not None:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:  # others than these come from network file systems without locks
        return not isinstance(error, BlockingIOError | PermissionError)
    return True


def _owner(file: IO[str]) -> str:
    """Say who holds a lock, as far as it is known."""
    file.seek(0)
    try:
        owner = json.loads(file.read())
        return f"process {owner['pid']} on {owner['host']} since {owner['since']}"
    except (ValueError, KeyError, OSError):
        return "another process"
