"""One run, one folder: a lock that the operating system drops when its process dies."""

import json
import os
import platform
import time
from pathlib import Path
from typing import IO, Self

from vision3d_engine.core.errors import FolderInUseError

try:
    import fcntl
except ImportError:  # Windows: no lock, as on file systems without locks
    fcntl = None

_NAME = ".lock"
_HELD: set[Path] = set()


class FolderLock:
    """Keeps other runs out of a folder while it is held.

    ``lockf`` is used, not ``flock``: data workers inherit the latter, and would keep the folder after a ``kill -9`` of
    the run. Within this process a second lock on the folder is refused too.

    Args:
        folder: the folder; it exists.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()
        self._file: IO[str] | None = None

    def __enter__(self) -> Self:
        if self._folder in _HELD:
            raise FolderInUseError(self._refusal("a run of this process"))
        path = self._folder / _NAME
        self._file = path.open("a+", encoding="utf-8")
        try:
            _lock(self._file)
        except BlockingIOError as error:
            owner = _owner(self._file)
            self._file.close()
            raise FolderInUseError(self._refusal(owner)) from error
        _HELD.add(self._folder)
        self._sign()
        return self

    def __exit__(self, *details: object) -> None:
        _HELD.discard(self._folder)
        if self._file is not None:
            self._file.truncate(0)
            self._file.close()

    def _sign(self) -> None:
        """Write down who holds the lock."""
        if self._file is not None:
            owner = {"pid": os.getpid(), "host": platform.node(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
            self._file.truncate(0)
            self._file.write(json.dumps(owner))
            self._file.flush()

    def _refusal(self, owner: str) -> str:
        return f"the folder '{self._folder}' is in use by {owner}. Wait for it, stop it, or choose another folder"


def _lock(file: IO[str]) -> None:
    """Lock a file, or do nothing where there are no locks; raise BlockingIOError when another process has it."""
    if fcntl is None:
        return
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        raise BlockingIOError from error
    except OSError:  # a network file system without locks
        return


def _owner(file: IO[str]) -> str:
    """Say who holds a lock, as far as it is known."""
    file.seek(0)
    try:
        owner = json.loads(file.read())
        return f"process {owner['pid']} on {owner['host']} since {owner['since']}"
    except (ValueError, KeyError, OSError):
        return "another process"
