"""One run, one folder: a lock that the operating system drops when its process dies."""

import contextlib
import json
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path

from vision3d_engine.core.errors import FolderError, FolderInUseError

try:
    import fcntl
except ImportError:  # Windows: no lock, as on file systems without locks
    fcntl = None

_NAME = ".lock"
_PATIENCE_S = 0.1
_ADVICE = "Wait for it, stop it, or choose another folder"
_HELD: set[int] = set()  # descriptors of lock files that are open in this process


def _let_go_in_child() -> None:
    """Close the locks of the parent in a forked child, such as a data worker, which would keep them after its death."""
    for descriptor in _HELD:
        os.close(descriptor)
    _HELD.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_in_child)


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Keep other runs, also those of this process, out of a folder while a block runs.

    The lock file goes with the block. ``flock`` is used, not ``lockf``: the latter is lost as soon as anything in the
    process, such as a copy of the folder, has read and closed the lock file.

    Raises:
        FolderInUseError: naming who works there.
        FolderError: when the lock file cannot be made.
    """
    path = folder / _NAME
    descriptor = _acquire(path)
    while not _is_same(descriptor, path):  # its owner has removed the file before we had the lock
        _close(descriptor)
        descriptor = _acquire(path)
    try:
        _sign(descriptor)
        yield
    finally:
        if descriptor in _HELD:  # a forked child has closed it when it began
            if _is_same(descriptor, path):  # nobody has moved the folder
                path.unlink()
            _close(descriptor)


@contextlib.contextmanager
def locked_file(path: Path) -> Iterator[None]:
    """Let one process after the other run a block; each waits for those before it. The lock file stays.

    Raises:
        FolderError: when the lock file cannot be made.
    """
    descriptor = _open(path)
    _HELD.add(descriptor)
    try:
        while not _lock(descriptor):
            time.sleep(_PATIENCE_S)
        yield
    finally:
        if descriptor in _HELD:  # a forked child has closed it when it began
            _close(descriptor)


def _acquire(path: Path) -> int:
    """Open and lock a file; raise `FolderInUseError` when another run has it."""
    descriptor = _open(path)
    _HELD.add(descriptor)
    if not _lock(descriptor):
        owner = _owner(descriptor)
        _close(descriptor)
        raise FolderInUseError(f"the folder '{path.parent}' is in use by {owner}. {_ADVICE}")
    return descriptor


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        message = f"cannot make the lock file '{path}': {error.strerror or error}. "
        raise FolderError(message + "Make it writable, or set exp.output_dir to another folder") from error


def _lock(descriptor: int) -> bool:
    """Lock a file, or do nothing where there are no locks; return False when another run has it."""
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:  # others than these come from network file systems without locks
        return not isinstance(error, BlockingIOError | PermissionError)
    return True


def _sign(descriptor: int) -> None:
    """Write down who holds the lock, if the disk has space for it."""
    owner = {"pid": os.getpid(), "host": platform.node(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    with contextlib.suppress(OSError):
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(owner).encode(), 0)


def _is_same(descriptor: int, path: Path) -> bool:
    """Tell whether a path still leads to the open file."""
    with contextlib.suppress(OSError):
        return os.path.samestat(os.fstat(descriptor), path.stat())
    return False


def _close(descriptor: int) -> None:
    """Close a lock file, which unlocks it."""
    _HELD.discard(descriptor)
    os.close(descriptor)


def _owner(descriptor: int) -> str:
    """Say who holds a lock, as far as it is known."""
    try:
        owner = json.loads(os.pread(descriptor, 4096, 0))
        if (owner["pid"], owner["host"]) == (os.getpid(), platform.node()):
            return "a run of this process"
        return f"process {owner['pid']} on {owner['host']} since {owner['since']}"
    except (ValueError, KeyError, TypeError, OSError):
        return "another process"
