"""Child processes that belong to this one, such as data workers: they hear none of its signals, and end with it."""

import atexit
import multiprocessing
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import NoReturn
from weakref import WeakKeyDictionary

# What schedulers, launchers and terminals send to all processes of a group to end a run.
_NAMES = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP")
STOP_SIGNALS: tuple[signal.Signals, ...] = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))
_GRACE_S = 1.0
_STARTED: WeakKeyDictionary[BaseProcess, int] = WeakKeyDictionary()  # with the process that has started it
_LAST_ACTS: list[Callable[[], object]] = []


@contextmanager
def starting_children() -> Iterator[None]:
    """Start processes in a block that end with this one, by whatever way of multiprocessing.

    A signal that this process handles, to end when its work is done, must not end them before: it is blocked while they
    start, and they inherit that. What simply ends this process ends them too.
    """
    others = set(multiprocessing.active_children())
    handled = [number for number in STOP_SIGNALS if callable(signal.getsignal(number))]
    before = signal.pthread_sigmask(signal.SIG_BLOCK, handled) if hasattr(signal, "pthread_sigmask") else None
    try:
        yield
    finally:
        _STARTED.update(dict.fromkeys(set(multiprocessing.active_children()) - others, os.getpid()))
        if before is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


@atexit.register  # before that of multiprocessing, which would wait for those that do not listen
def end_children() -> None:
    """Kill the processes that are still there: their work is of no use to anybody any more."""
    for process in _own_children():
        process.kill()


def end_children_soon() -> None:
    """Give them a second to end by themselves, as torch asks them to when their loader goes; returns at once.

    One that is killed while it sends a batch would leave a lock behind that torch waits for.
    """
    timer = threading.Timer(_GRACE_S, end_children)
    timer.daemon = True
    timer.start()


@contextmanager
def exiting_on_signals() -> Iterator[None]:
    """Let a signal to stop leave a block as `SystemExit`, so that all that it has opened is closed.

    Those that come while it is closed are not heard. What was ignored before, as by ``nohup``, stays ignored; only a
    main thread can enter.
    """
    heard = [number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]

    def leave(number: int, _: FrameType | None) -> NoReturn:
        for each in heard:
            signal.signal(each, signal.SIG_IGN)
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def lost_children() -> list[BaseProcess]:
    """Return the processes that a signal has ended."""
    return [process for process in _own_children() if (process.exitcode or 0) < 0]


def failed_children() -> list[BaseProcess]:
    """Return the processes that a signal, or they themselves with another code than 0, have ended."""
    return [process for process in _own_children() if process.exitcode]


def running_children() -> list[BaseProcess]:
    """Return the processes that run."""
    return [process for process in _own_children() if process.exitcode is None]


@contextmanager
def leaving_with(act: Callable[[], object]) -> Iterator[None]:
    """Do something when a block is left, also when `end_process` ends this process within it."""
    _LAST_ACTS.append(act)
    try:
        yield
    finally:
        _LAST_ACTS.remove(act)
        act()


def end_process() -> NoReturn:
    """End this process now, with its children: its main thread hangs where no exception reaches it."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    end_children()
    for act in _LAST_ACTS:
        act()
    os._exit(1)


def end_with(pid: int) -> None:
    """End this process from now on soon after another one of this machine, which may be killed without a word."""

    def watch() -> None:
        while is_running(pid):
            time.sleep(_GRACE_S)
        end_process()

    threading.Thread(target=watch, name=f"ends with process {pid}", daemon=True).start()


def home() -> str:
    """Return a name that processes have in common when they see each other's numbers and reach each other for sure."""
    try:
        namespaces = [str(Path(f"/proc/self/ns/{kind}").readlink()) for kind in ("pid", "net")]
        return " ".join([Path("/proc/sys/kernel/random/boot_id").read_text().strip(), *namespaces])
    except OSError:  # no such folder on this system
        return platform.node()


def is_running(pid: int) -> bool:
    """Tell whether there is a process of this number here; one that is dead and not yet collected is none."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except PermissionError:
        return True
    except FileNotFoundError:  # no such folder on this system
        return not Path("/proc/self").exists()
    except OSError:
        return False


def _own_children() -> list[BaseProcess]:
    """Return those that this process, and not the one that it was forked from, has started."""
    here = os.getpid()
    return [process for process, owner in list(_STARTED.items()) if owner == here]
