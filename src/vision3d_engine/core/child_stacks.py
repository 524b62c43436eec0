"""What data workers tell of themselves when a run hangs: the sample that each loads, and its stack.

A worker keeps a small file, in which its latest sample stands; on a signal `faulthandler` writes the stack behind it,
also when C code does not come back. Nothing is asked of a worker before, and it costs a sample two microseconds.

The signal would end a worker that does not listen. So its parent makes the folder of the files anew, under a name that
no other process can have used before, and a file is of one worker alone, which listens before it writes.
"""

import faulthandler
import hashlib
import multiprocessing
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from multiprocessing.process import BaseProcess
from pathlib import Path

from vision3d_engine.core.children import leaving_with, running_children

_SIGNAL = getattr(signal, "SIGUSR2", None)
_WIDTH = 200  # bytes of the line with the sample
_WAIT_S, _LOOK_S = 2.0, 0.05
_MADE: set[Path] = set()


def _folder(pid: int) -> Path:
    """Return where the children of a process keep their files; both know the random key that they have in common."""
    key = hashlib.sha256(b"vision3d_engine" + multiprocessing.current_process().authkey).hexdigest()
    return Path(tempfile.gettempdir()) / f"vision3d_engine-{pid}-{key[:32]}"


def _file(parent: int, name: str, pid: int | None) -> Path:
    """Return the file of a child, also by its name, since the number of one that is dead may come again."""
    return _folder(parent) / f"{name}-{pid}"


@contextmanager
def asking_children() -> Iterator[None]:
    """Let children that load their first sample in a block keep a file; it is there as long as the block lasts."""
    folder = _folder(os.getpid())
    try:
        folder.mkdir(mode=0o700)
    except OSError:  # it is that of a run around this one, or nobody is asked
        yield
        return
    _MADE.add(folder)
    with leaving_with(partial(_remove, folder)):
        yield


def _remove(folder: Path) -> None:
    _MADE.discard(folder)
    shutil.rmtree(folder, ignore_errors=True)


def note_sample(text: str) -> None:
    """Note in a child what it loads."""
    file = _own_file(os.getpid())
    if file is not None:
        with suppress(OSError):
            os.pwrite(file, text.encode()[: _WIDTH - 1].ljust(_WIDTH - 1) + b"\n", 0)


def is_child() -> bool:
    """Tell whether this process is a child that keeps a file."""
    return _own_file(os.getpid()) is not None


@cache
def _own_file(pid: int) -> int | None:
    """Open the file of this process, where its parent has asked for it and nobody else uses the signal."""
    parent = multiprocessing.parent_process()
    if parent is None or parent.pid is None or _SIGNAL is None or signal.getsignal(_SIGNAL) != signal.SIG_DFL:
        return None
    try:
        path = _file(parent.pid, multiprocessing.current_process().name, pid)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError:  # nobody has asked
        return None
    os.lseek(file, _WIDTH, os.SEEK_SET)
    faulthandler.register(_SIGNAL, file=file, all_threads=True)
    return file


def stacks_of_children() -> Iterator[str]:
    """Yield for each child that keeps a file what it loads, and where it is now."""
    is_own = _folder(os.getpid()) in _MADE
    for child in running_children() if is_own else ():
        path = _file(os.getpid(), child.name, child.pid)
        if child.pid is not None and path.exists():
            yield f"{child.name}, process {child.pid}: {_asked(child.pid, path)}"


def samples_of(children: Iterable[BaseProcess]) -> list[str]:
    """Return what children have loaded last that keep, or have kept, a file; they may be dead."""
    paths = [_file(os.getpid(), child.name, child.pid) for child in children]
    return [text for path in paths if path.exists() and (text := _sample(path.read_bytes()))]


def _sample(content: bytes) -> str:
    return content[:_WIDTH].decode(errors="replace").strip()


def _asked(pid: int, path: Path) -> str:
    """Let a child write its stack; return its sample and the stack."""
    before = max(path.stat().st_size, _WIDTH)
    if path.stat().st_size and _SIGNAL is not None:  # it listens
        with suppress(OSError):
            os.kill(pid, _SIGNAL)
        patience = time.monotonic() + _WAIT_S
        while path.stat().st_size <= before and time.monotonic() < patience:
            time.sleep(_LOOK_S)
        time.sleep(_LOOK_S)  # for the rest of it
    text = path.read_bytes()
    return f"{_sample(text)}\n{text[before:].decode(errors='replace')}"
