"""Being asked to stop: by a signal, by Ctrl-C, or because the time is over."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from vision3d_engine.core.children import STOP_SIGNALS, end_children, end_children_soon
from vision3d_engine.data.workers import waiting_s
from vision3d_engine.distributed.coordination.agreement import LAUNCHER_IS_GONE, Agreement
from vision3d_engine.distributed.launch.launcher import slurm_job

# What a deadline ends with: "try again later" (sysexits.h), which no signal and no error uses.
TIME_IS_OVER = 75
_DEADLINE = "max_time"
# A launcher such as torchrun hands a Ctrl-C on that the terminal has already sent to every process.
_SAME_PRESS_S = 1.0
# When a stop is requested, the next batch may take so long; one that takes longer is loaded when the run goes on.
_BATCH_PATIENCE_S = 1.5


class StopRun(SystemExit):
    """Ends the program after everything has been saved; ``code`` is its exit status."""


class StopRequests:
    """Notices requests to stop: signals, Ctrl-C, the end of the time.

    While `listening`, SIGTERM, SIGINT, SIGUSR1 and SIGHUP only leave a request; a second Ctrl-C ends at once. A SIGHUP
    or SIGINT that was ignored when the process started (``nohup``, ``&`` in a script) stays ignored.

    Args:
        agreement: brings the request to all processes.
        max_time_s: ask for a stop after so many seconds; None for never.
        started_at: when they began, in ``time.time()``, for processes that a launcher starts again; None for now.
    """

    def __init__(self, agreement: Agreement, max_time_s: float | None = None, started_at: float | None = None) -> None:
        self._agreement = agreement
        behind_s = 0.0 if started_at is None else max(time.time() - started_at, 0.0)
        self._deadline = None if max_time_s is None else time.monotonic() + max_time_s - behind_s
        self._pid = os.getpid()
        self._pressed_at: float | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Notice requests while a block runs."""
        left_s = None if self._deadline is None else max(self._deadline - time.monotonic(), 0.0)
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._handling_signals())
            stack.enter_context(alarm(left_s, self._time_is_over, repeats=False))
            look_s = _BATCH_PATIENCE_S / 3 if self._agreement.is_alone else None
            stack.enter_context(alarm(look_s, self._end_stuck_workers))
            yield

    def _end_stuck_workers(self) -> None:
        """End workers that keep a stop waiting for their batch; not of one of several processes, whose step fails."""
        if is_stop(self._agreement.pending) and waiting_s() > _BATCH_PATIENCE_S:
            end_children()

    @contextmanager
    def _handling_signals(self) -> Iterator[None]:
        """Handle the signals; the handlers from before are put back at the end. Only a main thread can do so."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._handle) for number in STOP_SIGNALS if not _is_ignored(number)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def _time_is_over(self) -> None:
        self._agreement.request(f"stop {_DEADLINE}")

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            _act_as_worker(number)
        elif number == signal.SIGINT and self._is_second_press():
            signal.signal(signal.SIGINT, signal.default_int_handler)
            raise KeyboardInterrupt
        else:
            self._agreement.request(f"stop {signal.Signals(number).name}")

    def _is_second_press(self) -> bool:
        first, now = self._pressed_at, time.monotonic()
        self._pressed_at = first if first is not None else now
        return first is not None and now - first > _SAME_PRESS_S


def _is_ignored(number: signal.Signals) -> bool:
    """Tell whether who started this process wants it to outlive a terminal; SIGTERM and SIGUSR1 are always heard."""
    return number.name in {"SIGHUP", "SIGINT"} and signal.getsignal(number) == signal.SIG_IGN


def _number(name: str) -> int:
    return int(getattr(signal, name))


def _act_as_worker(number: int) -> None:
    """Behave as a data worker, which has inherited the handlers: go on at Ctrl-C, end otherwise."""
    if number != signal.SIGINT:
        os._exit(128 + number)


@contextmanager
def alarm(after_s: float | None, act: Callable[[], None], repeats: bool = True) -> Iterator[None]:
    """Call a function in a thread after some seconds, once or again and again, while a block runs; never for None."""
    ended = threading.Event()

    def ring() -> None:
        while not ended.wait(after_s):
            act()
            if not repeats:
                return

    if after_s is not None:
        threading.Thread(target=ring, name="alarm", daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def is_stop(request: str | None) -> bool:
    """Tell whether a request is to stop."""
    return request is not None and request.startswith("stop ")


def reason_of(request: str) -> str:
    """Return what has asked for a stop: the name of a signal, or ``max_time``."""
    return request.removeprefix("stop ")


def end_program(request: str) -> NoReturn:
    """End with 128 + the signal's number, as a shell reports it, with 75 when the time is over.

    Data workers end within a second, whatever they do. In a notebook or at a prompt, Ctrl-C ends the call and not the
    program.
    """
    reason = reason_of(request)
    if reason == "SIGINT" and _is_interactive():
        raise KeyboardInterrupt
    end_children_soon()
    raise StopRun(_exit_code(request))


def _exit_code(request: str) -> int:
    reason = reason_of(request)
    if reason == _DEADLINE:
        return TIME_IS_OVER
    return 128 + _number("SIGHUP" if request == LAUNCHER_IS_GONE else reason)  # whom it would have hung up


def _is_interactive() -> bool:
    return hasattr(sys, "ps1") or "ipykernel" in sys.modules


def requeue(request: str) -> str | None:
    """Ask SLURM to queue this job again if its end was announced; return what happened, else None."""
    job = slurm_job()
    if job is None or reason_of(request) not in {"SIGUSR1", _DEADLINE}:
        return None
    try:
        done: Any = subprocess.run(  # noqa: S603
            ["scontrol", "requeue", job],  # noqa: S607
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return f"scontrol requeue {job} failed: {error}"
    return f"scontrol requeue {job}: " + (done.stderr.strip() if done.returncode else "done")
