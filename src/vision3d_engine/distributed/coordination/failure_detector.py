"""Notice that another process of the run has failed, died or does not come, say so, and end this one."""

import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Literal

from vision3d_engine.core.children import end_process
from vision3d_engine.core.errors import ProcessError
from vision3d_engine.core.tracebacks import cause_of, users_part
from vision3d_engine.distributed.coordination.heartbeats import Heartbeat, Heartbeats, Position, described
from vision3d_engine.distributed.coordination.stack_location import line_of
from vision3d_engine.distributed.coordination.store import own_connection, talking_thread
from vision3d_engine.distributed.coordination.transport_errors import is_lost_connection, lost_text
from vision3d_engine.distributed.launch.launcher import wants_full_tracebacks

_INTERVAL_S = 0.5
# Several intervals: who is silent for so long while another has lost a connection is the one that is lost.
_SILENCE_S = 4.0
# For the main thread, which an exchange may hold in C++: to come out with an error, and then to close files.
_GRACE_S = 5.0
_CLOSING_S = 20.0
_MAX_TEXT = 2000
_WHAT_TO_DO = "All processes end with code 1; go on with --resume"

Tell = Callable[[str, str], None]
Suspicion = Literal["lost", "late", "silent"]


class FailureDetector:
    """Looks after the processes of one run. Here the process is alone."""

    @contextmanager
    def watching(self, where: Callable[[], str], tell: Tell) -> Iterator[None]:
        """Watch while a block runs.

        Args:
            where: returns the position of this process, such as ``train epoch 1, iteration 5``; called by a thread.
            tell: says a message of a level, WARNING or ERROR, to people; called by a thread.

        Raises:
            ProcessError: when another process has failed, died or does not come, with what is known of it.
        """
        yield


class StoreFailureDetector(FailureDetector):
    """Looks after several processes through their store; nothing is exchanged in a step.

    One thread talks to the store twice a second: it posts a heartbeat with the position, looks for a failure, and looks
    at one neighbour, so that the cost of a process does not grow with their number. Another thread looks at the clocks,
    since the store may not answer. The first failure that is posted ends every process: the main thread gets a few
    seconds to end by the error that a lost connection raises, then the thread ends the process.

    A process that is silent and runs is none that has died: C code may hold python's lock for minutes. On this machine
    its number tells; one on another machine gets twice the time. Before a process is ended that gives signs of life, or
    that runs, a warning says so.

    Args:
        rank: number of this process.
        size: number of processes.
        name: tells this detector from others of the same processes.
        heartbeat_s: how long a process may give no sign of life.
        patience_s: how long a process may wait for another.
        ends_process: end the process after a failure; otherwise only a main thread that does not end by itself.
    """

    def __init__(
        self, rank: int, size: int, name: str, *, heartbeat_s: float, patience_s: float, ends_process: bool
    ) -> None:
        self._rank = rank
        self._store = own_connection(f"failure_detector/{name}")
        self._heartbeats = Heartbeats(self._store, rank, size)
        self._heartbeat_s = heartbeat_s
        self._limit_s = patience_s
        self._patience_s = max(patience_s - _SILENCE_S, patience_s / 2)  # the rest goes by while we look who is late
        self._warned_of: set[Suspicion] = set()
        self._tell: Tell = print
        self._ends_process = ends_process
        self._ended = threading.Event()
        self._failure: str | None = None
        self._own_failure: str | None = None
        self._is_posted = threading.Event()
        self._position = Position(threading.get_ident(), str)
        self._answered_at = time.monotonic()
        self._suspicion: Suspicion | None = None
        self._earlier: tuple[float, list[Heartbeat | None]] | None = None
        self._store_thread = talking_thread(self._talk_to_store, "failure-detector")

    @contextmanager
    def watching(self, where: Callable[[], str], tell: Tell) -> Iterator[None]:
        """Watch while a block runs; see `FailureDetector.watching`. Once only."""
        self._position = Position(threading.get_ident(), where).updated()
        self._tell = tell
        self._store_thread.start()
        threading.Thread(target=self._look_at_clocks, name="failure-detector-clock", daemon=True).start()
        try:
            yield
        except Exception as error:
            if (cause := self._cause_of(error)) is not error:
                raise cause from None
            raise
        finally:
            self._ended.set()
            self._store_thread.join(2 * _INTERVAL_S)

    # ------------------------------------------------------------------------------------------- the main thread

    def _cause_of(self, error: Exception) -> Exception:
        """Return the error itself, once the others know of it, or the failure of another process that has caused it."""
        if not is_lost_connection(error):
            self._post(error)
            return error
        self._suspicion = self._suspicion or "lost"
        patience = time.monotonic() + _SILENCE_S + _GRACE_S
        while self._failure is None and self._store_thread.is_alive() and time.monotonic() < patience:
            time.sleep(_INTERVAL_S / 10)
        alone = f"{lost_text(error)}, and the store of the processes is gone. {_WHAT_TO_DO}"
        return ProcessError(self._failure or alone)

    def _post(self, error: Exception) -> None:
        """Tell the other processes, and torchrun, what has failed here; waits until they had time to look.

        When another one was first, nobody is told, and nothing ends this process: its script may catch what all raise.
        """
        _tell_torchrun(error)
        place = f"{self._position.where_now()} ({line_of(error.__traceback__)})"
        self._own_failure = f"{self._name()} failed in {place}: {cause_of(error)[:_MAX_TEXT]}"
        if self._failure is None and self._is_posted.wait(_GRACE_S):
            time.sleep(2 * _INTERVAL_S)

    def _name(self) -> str:
        return f"process {self._rank} on {platform.node()}"

    # ------------------------------------------------------------------------------------------- the clock thread

    def _look_at_clocks(self) -> None:
        """Keep the position of the main thread, tell a failure, and end the process when its time is over."""
        while self._failure is None and not self._ended.wait(_INTERVAL_S / 2):
            self._position = self._position.updated()
            if self._is_cut_off():
                silence = time.monotonic() - self._answered_at
                text = f"{self._name()} has heard nothing of the others for {silence:.0f} s in {self._position.where}"
                text = f"{text} ({self._heartbeat_limit()}): the network, or the machine with their store, is gone"
                self._failure = f"{text}. {_WHAT_TO_DO}"
        if self._failure is not None:
            with suppress(Exception):
                self._tell(self._failure, "ERROR")
            is_ending = self._ended.wait(_GRACE_S)
            if is_ending and (self._own_failure is not None or not self._ends_process):
                return
            time.sleep(_CLOSING_S if is_ending else 0)
            end_process()

    def _is_cut_off(self) -> bool:
        """Tell whether the store is silent and this process waits for others; who works may well be left alone."""
        silent_s = time.monotonic() - self._answered_at
        return self._heartbeats.posted > 1 and min(silent_s, self._position.waiting_s()) > self._heartbeat_s

    # ------------------------------------------------------------------------------------------- the store thread

    def _talk_to_store(self) -> None:
        """Talk to the store until the end; it may be gone with the process that held it."""
        with suppress(RuntimeError, OSError):
            while not self._ended.is_set():
                self._exchange()
                self._answered_at = time.monotonic()
                self._ended.wait(_INTERVAL_S)
            self._heartbeats.post(self._position, has_ended=True)

    def _exchange(self) -> None:
        position = self._position
        self._heartbeats.post(position)
        if self._own_failure is not None and not self._is_posted.is_set():
            self._store.compare_set("failure", "", self._own_failure)
            self._is_posted.set()
        if self._own_failure is None and self._store.check(["failure"]):
            self._failure = self._store.get("failure").decode()
        if self._is_neighbour_silent():
            self._suspicion = self._suspicion or "silent"
        if position.waiting_s() > self._patience_s:
            self._suspicion = self._suspicion or "late"
        elif position.waiting_s() < self._patience_s / 2:
            self._warned_of.discard("late")
        elif self._is_first("late"):
            self._warn_of_late()
        if self._suspicion is not None and self._failure is None:
            self._investigate(self._suspicion)

    def _is_neighbour_silent(self) -> bool:
        """Tell whether the neighbour is silent for too long; warn of one that may well live."""
        beat, silent_s = self._heartbeats.silent_neighbour()
        if beat is None or silent_s <= self._heartbeat_s:
            self._warned_of.discard("silent")
            return False
        if not beat.is_running_here and (beat.is_of_here or silent_s > 2 * self._heartbeat_s):
            return True
        if self._is_first("silent"):
            what = (
                f"process {self._heartbeats.neighbour} on {beat.host} gives no sign of life ({self._heartbeat_limit()})"
            )
            until = f"runs and is waited for ({self._patience_limit()})" if beat.is_running_here else "may be gone"
            self._tell(f"{what}, but {until}: its last one was in {beat.position}", "WARNING")
        return False

    def _warn_of_late(self) -> None:
        """Say whom this process waits for, if it is the first of those that wait."""
        beats = self._heartbeats.read_all()
        waiting = [rank for rank, beat in enumerate(beats) if beat is not None and beat.is_waiting]
        if self._rank == min(waiting, default=self._rank) and len(waiting) < len(beats):
            self._tell(f"{self._waits_for([], beats)}. The run ends when that time is over", "WARNING")

    def _is_first(self, suspicion: Suspicion) -> bool:
        """Tell whether nobody was warned of this yet."""
        was_warned = suspicion in self._warned_of
        self._warned_of.add(suspicion)
        return not was_warned

    def _investigate(self, suspicion: Suspicion) -> None:
        """Look at all processes twice, some seconds apart, and post a failure if one of them is to blame."""
        now, beats = time.monotonic(), self._heartbeats.read_all()
        if self._earlier is None:
            self._earlier = (now, beats)
        elif now - self._earlier[0] >= _SILENCE_S:
            text = self._explain(suspicion, self._earlier[1], beats)
            self._suspicion = self._earlier = None
            if text:
                self._store.compare_set("failure", "", f"{text}. {_WHAT_TO_DO}")

    def _explain(self, suspicion: Suspicion, before: list[Heartbeat | None], now: list[Heartbeat | None]) -> str:
        """Say who is to blame; an empty text when nobody is."""
        others = [(rank, beat) for rank, beat in enumerate(now) if rank != self._rank and beat is not None]
        ended = [rank for rank, beat in others if beat.has_ended and suspicion != "silent"]
        silent = [rank for rank, beat in others if not beat.has_ended and beat == before[rank]]
        if suspicion == "late":
            has_come = self._position.waiting_s() < self._patience_s
            return "" if has_come else self._waits_for(ended + silent, now)
        gone = ended + [rank for rank, beat in others if rank in silent and not beat.is_running_here]
        if gone:
            limit = f" ({self._heartbeat_limit()})" if suspicion == "silent" else ""
            return described(sorted(gone), now, are_gone=True) + limit
        return "the connection to another process is lost, though all give signs of life" if suspicion == "lost" else ""

    def _waits_for(self, gone: list[int], now: list[Heartbeat | None]) -> str:
        """Say whom this process waits for."""
        position = self._position
        text = f"{self._name()} has waited {position.waiting_s():.0f} s in {position}"
        late = [rank for rank, beat in enumerate(now) if rank in gone or beat is None or not beat.is_waiting]
        if late:
            return f"{text} for {described(late, now)} ({self._patience_limit()})"
        everybody = described(range(len(now)), now)
        return f"{text}, as all processes wait, for different things: {everybody} ({self._patience_limit()})"

    def _patience_limit(self) -> str:
        return f"trainer.collective_timeout_s: {self._limit_s:g}"

    def _heartbeat_limit(self) -> str:
        return f"trainer.heartbeat_s: {self._heartbeat_s:g}"


def _tell_torchrun(error: Exception) -> None:
    """Let torchrun's report name this error as the first, with its traceback, if torchrun has started us."""
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        whole = error.__traceback__
        if not wants_full_tracebacks():
            error.with_traceback(users_part(whole) or whole)
        with suppress(Exception):
            get_error_handler().record_exception(error)
        error.with_traceback(whole)
