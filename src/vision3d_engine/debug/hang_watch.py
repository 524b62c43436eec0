"""Notice that a run makes no step for long, and write where all its threads and data workers are."""

import faulthandler
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vision3d_engine.core.child_stacks import asking_children, stacks_of_children
from vision3d_engine.core.children import end_process
from vision3d_engine.core.files import make_folder

_LOOK_S = 1.0


class HangWatch:
    """Looks at the position of this process, by a thread that sleeps; a step does nothing for it.

    Each of several processes looks at itself, so one that waits in an exchange writes its stack like the one that does
    not come.

    Args:
        limit_s: how long the position may stay; None for no limit.
        ends_process: end the process then, with code 1; otherwise it goes on.
        folder: where the stacks are written.
        rank: number of this process.
        say: takes a message and its level.
        is_paused: tells whether a person holds the run in a debugger.
    """

    def __init__(
        self,
        limit_s: float | None,
        *,
        ends_process: bool,
        folder: Path,
        rank: int,
        say: Callable[[str, str], None],
        is_paused: Callable[[], bool],
    ) -> None:
        self._limit_s, self._ends_process = limit_s, ends_process
        self._folder, self._rank = folder, rank
        self._say, self._is_paused = say, is_paused
        self._ended = threading.Event()

    @contextmanager
    def watching(self, where: Callable[[], str]) -> Iterator[None]:
        """Watch while a block runs; once only.

        Args:
            where: returns the position, such as ``train epoch 1, iteration 5``; called by a thread.
        """
        if self._limit_s is None:
            yield
            return
        with asking_children():
            threading.Thread(target=self._look, args=(where, self._limit_s), name="hang-watch", daemon=True).start()
            try:
                yield
            finally:
                self._ended.set()

    def _look(self, where: Callable[[], str], limit_s: float) -> None:
        """Tell each stay at one position that is too long, once."""
        at, since, is_told = "", time.monotonic(), False
        while not self._ended.wait(min(_LOOK_S, limit_s / 4)):
            now = _position(where, at)
            if now != at or self._is_paused():
                at, since, is_told = now, time.monotonic(), False
            elif not is_told and time.monotonic() - since > limit_s:
                is_told = True
                self._tell(at, limit_s)

    def _tell(self, at: str, limit_s: float) -> None:
        """Write the stacks, say where they are, and end the process if that is wanted."""
        text = f"no step for {limit_s:g} s (trainer.hang_after) in {at}"
        try:
            text = f"{text}: the stacks of all threads and data workers are in '{self._write(text)}'"
        except OSError as error:
            text = f"{text}; the stacks cannot be written: {error}"
        if not self._ends_process:
            self._say(f"{text}. The run goes on waiting (trainer.on_hang: continue)", "WARNING")
            return
        with suppress(Exception):
            self._say(f"{text}. The run ends (trainer.on_hang: stop); go on with --resume", "ERROR")
        end_process()

    def _write(self, text: str) -> Path:
        """Write the stacks of this process and its data workers, and return the file."""
        path = make_folder(self._folder) / time.strftime(f"hang-%Y%m%d-%H%M%S-rank{self._rank}.txt")
        with path.open("w") as file:
            file.write(f"process {self._rank}: {text}\n\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
            for stack in stacks_of_children():
                file.write(f"\ndata worker {stack}")
        return path


def _position(where: Callable[[], str], known: str) -> str:
    """Return the position now; the one that is known when it cannot be told."""
    with suppress(Exception):
        return where()
    return known
