"""Notice that another process of the run has failed, died or does not come, say so, and end this one."""

import json
import os
import platform
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

import torch.distributed as dist

from vision3d_engine.core.errors import ProcessError
from vision3d_engine.distributed import whereabouts
from vision3d_engine.distributed.store import own_connection

_PULSE_S = 0.5
_STAY_S = 1.0
# Several pulses: a process that is silent for so long while another has lost a connection is the one that is lost.
_SILENCE_S = 4.0
# For the main thread, which an exchange may hold in C++: to come out with an error, and then to close files.
_GRACE_S = 5.0
_CLOSING_S = 20.0
_MAX_NAMES = 5
_MAX_TEXT = 2000
_ADVICE = "All processes end with code 1; go on with --resume"
_LOST = re.compile(
    r"gloo/.*(closed|reset|timed? ?out|broken pipe|refused|unreachable|no route)", re.IGNORECASE | re.DOTALL
)


class Watch:
    """Watches over the processes of one run. Here the process is alone."""

    @contextmanager
    def over(self, where: Callable[[], str], tell: Callable[[str], None]) -> Iterator[None]:
        """Watch while a block runs.

        Args:
            where: returns the position of this process, such as ``train epoch 1, iteration 5``; called by a thread.
            tell: says a message to people; called by a thread.

        Raises:
            ProcessError: when another process has failed, died or does not come, with what is known of it.
        """
        yield


    def watching(self, where, tell):
        return self.over(where, tell)


class ProcessWatch(Watch):
    """Watches over several processes through their store; nothing is exchanged in a step.

    One thread talks to the store twice a second: it posts a sign of life with the position, looks for a verdict, and
    looks at one neighbour, so that the cost of a process does not grow with their number. Another thread looks at the
    clocks, since the store may not answer. A verdict, of which the first counts, ends every process: the main thread
    gets a few seconds to end by the error that a lost connection raises, then the thread ends the process.

    Args:
        rank: number of this process.
        size: number of processes.
        name: tells this watch from others of the same processes.
        heartbeat_s: how long a process may give no sign of life.
        patience_s: how long a process may wait for another.
        ends_process: end the process after a verdict; otherwise only a main thread that does not end by itself.
    """

    def __init__(
        self, rank: int, size: int, name: str, *, heartbeat_s: float, patience_s: float, ends_process: bool
    ) -> None:
        self._rank, self._size = rank, size
        self._store = own_connection(f"watch/{name}")
        self._heartbeat_s = heartbeat_s
        self._patience_s = max(patience_s - _SILENCE_S, patience_s / 2)  # the rest goes by while we look who is late
        self._ends_process = ends_process
        self._ended = threading.Event()
        self._verdict: str | None = None
        self._report: str | None = None
        self._is_posted = threading.Event()
        self._place = _Place()
        self._count = 0
        self._answered_at = time.monotonic()
        self._neighbour: tuple[str, float] = ("", time.monotonic())
        self._question: str | None = None
        self._first: tuple[float, list[Any]] | None = None

    @contextmanager
    def over(self, where: Callable[[], str], tell: Callable[[str], None]) -> Iterator[None]:
        """Watch while a block runs; see `Watch.over`."""
        arguments = (threading.get_ident(), where, tell)
        self._where = where
        self._place = self._place.moved(threading.get_ident(), where)
        self._talker = threading.Thread(target=self._talk, name="watch", daemon=True)
        self._talker.start()
        threading.Thread(target=self._look_at_clocks, args=arguments, name="watch-clock", daemon=True).start()
        try:
            yield
        except Exception as error:
            blamed = self._blame(error)
            if blamed is error:
                raise
            raise blamed from None
        finally:
            self._ended.set()
            self._talker.join(_STAY_S)

    # ------------------------------------------------------------------------------------------- the main thread

    def _blame(self, error: Exception) -> Exception:
        """Return the error itself, once the others know of it, or the verdict when another process has caused it."""
        if not is_lost_connection(error):
            self._post(error)
            return error
        self._question = self._question or "lost"
        patience = time.monotonic() + _SILENCE_S + _GRACE_S
        while self._verdict is None and self._talker.is_alive() and time.monotonic() < patience:
            time.sleep(_PULSE_S / 10)
        return ProcessError(self._verdict or f"{_lost_text(error)}, and the store of the processes is gone. {_ADVICE}")

    def _post(self, error: Exception) -> None:
        """Tell the other processes, and torchrun, what has failed here; waits until they had time to look.

        When another one was first, nobody is told, and nothing ends this process: its script may catch what all raise.
        """
        _tell_torchrun(error)
        line = whereabouts.line_of(error.__traceback__)
        self._report = f"{self._name()} failed in {self._where()} ({line}): {_in_short(error)}\n{_ADVICE}"
        if self._verdict is None and self._is_posted.wait(_GRACE_S):
            time.sleep(2 * _PULSE_S)

    def _name(self) -> str:
        return f"process {self._rank} on {platform.node()}"

    # ------------------------------------------------------------------------------------------- clocks

    def _look_at_clocks(self, thread: int, where: Callable[[], str], tell: Callable[[str], None]) -> None:
        """Keep the place of the watched thread, tell a verdict, and end the process when its time is over."""
        while self._verdict is None and not self._ended.wait(_PULSE_S / 2):
            self._place = self._place.moved(thread, where)
            if self._is_cut_off():
                silence = time.monotonic() - self._answered_at
                text = f"{self._name()} has heard nothing of the others for {silence:.0f} s in {self._place.where}"
                self._verdict = f"{text}: the network, or the machine with their store, is gone. {_ADVICE}"
        if self._verdict is not None:
            with suppress(Exception):
                tell(self._verdict)
            is_ending = self._ended.wait(_GRACE_S)
            if is_ending and (self._report is not None or not self._ends_process):
                return
            time.sleep(_CLOSING_S if is_ending else 0)
            _end_process()

    def _is_cut_off(self) -> bool:
        """Tell whether the store is silent and this process waits for others; who works may well be left alone."""
        silent_s = time.monotonic() - self._answered_at
        return self._count > 1 and min(silent_s, self._place.waiting_s()) > self._heartbeat_s

    # ------------------------------------------------------------------------------------------- the store

    def _talk(self) -> None:
        """Talk to the store until the end; it may be gone with the process that held it."""
        with suppress(RuntimeError, OSError):
            while not self._ended.is_set():
                self._exchange()
                self._answered_at = time.monotonic()
                self._ended.wait(_PULSE_S)
            self._store.set(f"left/{self._rank}", "")

    def _exchange(self) -> None:
        self._count += 1
        place = self._place
        beat = [self._count, platform.node(), place.where, place.at.line, place.waiting_s() >= 1]
        self._store.set(f"beat/{self._rank}", json.dumps(beat))
        if self._report is not None and not self._is_posted.is_set():
            self._store.compare_set("verdict", "", self._report)
            self._is_posted.set()
        self._hear()
        self._look_at_neighbour()
        if place.waiting_s() > self._patience_s:
            self._question = self._question or "waits"
        if self._question is not None and self._verdict is None:
            self._investigate(self._question)

    def _hear(self) -> None:
        """Take over a verdict, unless this process has failed itself and so knows."""
        if self._report is None and self._store.check(["verdict"]):
            self._verdict = self._store.get("verdict").decode()

    def _look_at_neighbour(self) -> None:
        """Ask who is silent when the next process, of those that have begun, gives no sign of life."""
        key, now = f"beat/{(self._rank + 1) % self._size}", time.monotonic()
        beat = self._store.get(key).decode() if self._store.check([key]) else ""
        if not beat or beat != self._neighbour[0]:
            self._neighbour = (beat, now)
        elif now - self._neighbour[1] > self._heartbeat_s:
            self._question = self._question or "silent"

    def _investigate(self, question: str) -> None:
        """Look at all processes twice, some seconds apart, and post a verdict if one of them is to blame."""
        now, found = time.monotonic(), [self._last_of(rank) for rank in range(self._size)]
        if self._first is None:
            self._first = (now, found)
        elif now - self._first[0] >= _SILENCE_S:
            text = self._explain(question, self._first[1], found)
            self._question = self._first = None
            if text:
                self._store.compare_set("verdict", "", f"{text}. {_ADVICE}")
                self._hear()

    def _last_of(self, rank: int) -> Any:
        """Return the last sign of life of a process; None before its run, and a last word after it."""
        if self._store.check([f"left/{rank}"]):
            return "left"
        key = f"beat/{rank}"
        return json.loads(self._store.get(key)) if self._store.check([key]) else None

    def _explain(self, question: str, before: list[Any], now: list[Any]) -> str:
        """Say who is to blame; an empty text when nobody is."""
        gone = [rank for rank in range(self._size) if now[rank] == "left" or (now[rank] and now[rank] == before[rank])]
        gone = [rank for rank in gone if rank != self._rank and (now[rank] != "left" or question != "silent")]
        if question == "waits":
            if self._place.waiting_s() < self._patience_s:  # it has come meanwhile
                return ""
            late = [rank for rank in range(self._size) if rank in gone or now[rank] is None or not now[rank][4]]
            return self._waits_for(late, now)
        if gone:
            return _some([_gone_text(rank, now[rank], before[rank]) for rank in gone])
        return "the connection to another process is lost, though all give signs of life" if question == "lost" else ""

    def _waits_for(self, late: list[int], now: list[Any]) -> str:
        place = self._place
        text = f"{self._name()} has waited {place.waiting_s():.0f} s in {place.where}{_at(place.at.line)}"
        if late:
            return f"{text} for " + _some([_late_text(rank, now[rank]) for rank in late])
        return f"{text}, as all processes wait, for different things: " + _some(
            [_late_text(rank, beat) for rank, beat in enumerate(now)]
        )


class _Place:
    """Where the watched thread is, and since when; its line is looked up only when its position stays for a second."""

    def __init__(self, where: str = "") -> None:
        self.where = where
        self.at = whereabouts.Whereabouts("", is_waiting=False)
        self._reached = self.since = time.monotonic()

    def moved(self, thread: int, where: Callable[[], str]) -> "_Place":
        """Return the place now; this one if the position has not changed."""
        with suppress(Exception):
            if (text := where()) != self.where:
                return _Place(text)
        if time.monotonic() - self._reached >= _STAY_S and (at := whereabouts.find(thread)) != self.at:
            self.at, self.since = at, time.monotonic()
        return self

    def waiting_s(self) -> float:
        """Return how long the thread has waited for other processes."""
        return time.monotonic() - self.since if self.at.is_waiting else 0.0


def is_lost_connection(error: BaseException) -> bool:
    """Tell whether an error says that another process is lost, or late, and nothing of this process's own."""
    if isinstance(error, ProcessError | dist.DistError):
        return True
    return isinstance(error, RuntimeError) and bool(_LOST.search(str(error)))


@contextmanager
def exchange(what: str) -> Iterator[None]:
    """Turn the errors of a lost or late process into one that says what to do.

    Raises:
        ProcessError: naming the exchange.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_lost_connection(error):
            raise
        message = f"{what} with the other processes failed: {_lost_text(error)}. Go on with --resume"
        raise ProcessError(message) from error


def _lost_text(error: BaseException) -> str:
    """Return what is lost, in the transport's words, without the place in its source code."""
    first = (str(error).splitlines() or [""])[0]
    return "the connection to another process is lost (" + re.sub(r"^\[[^\]]*\] ", "", first)[:200] + ")"


def _in_short(error: Exception) -> str:
    """Return kind and message of an error; of one from a data worker, which holds a traceback, the last line."""
    text = str(error).strip()
    if "Traceback (most recent call last)" in text:
        return text.splitlines()[-1].rpartition("vision3d_engine.core.errors.")[2][:_MAX_TEXT]
    return f"{type(error).__name__}: {text}"[:_MAX_TEXT]


def _gone_text(rank: int, now: Any, before: Any) -> str:
    """Say that a process is gone, and where it was."""
    if now == "left":
        return f"process {rank} has ended its run before the others"
    _, host, where, line, _ = before
    return f"process {rank} on {host} is gone: its last sign of life was in {where}{_at(line)}"


def _late_text(rank: int, beat: Any) -> str:
    if beat == "left":
        return f"process {rank}, which has ended its run"
    if beat is None:
        return f"process {rank}, which has not begun its run"
    _, host, where, line, _ = beat
    return f"process {rank} on {host}, which is in {where}{_at(line)}"


def _at(line: str) -> str:
    return f" ({line})" if line else ""


def _some(texts: list[str]) -> str:
    """Join some of many texts."""
    more = len(texts) - _MAX_NAMES
    return "; ".join(texts[:_MAX_NAMES]) + (f"; and {more} more" if more > 0 else "")


def _tell_torchrun(error: Exception) -> None:
    """Let torchrun's report name this error as the first, with its traceback, if torchrun has started us."""
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        with suppress(Exception):
            get_error_handler().record_exception(error)


def _end_process() -> NoReturn:
    """End now: the main thread hangs in an exchange that no exception reaches."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(1)
