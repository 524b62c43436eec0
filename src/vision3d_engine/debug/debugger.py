"""Python's debugger in a run: with the bars put away, on one process while the others wait, or after an error."""

import contextlib
import inspect
import pdb  # noqa: T100  what this file opens
import sys
import time
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any

from tqdm import tqdm

from vision3d_engine.core.errors import ConfigError, text_of
from vision3d_engine.core.tracebacks import users_part
from vision3d_engine.distributed.coordination.hold import Hold
from vision3d_engine.distributed.coordination.transport_errors import is_lost_connection
from vision3d_engine.distributed.world import World

_LOOK_S = 0.2
_NO_TERMINAL = "the debugger is not opened, since standard input is no terminal: nobody could answer it"
_SEVERAL = (
    "breakpoint() is passed over, since the other processes would wait for this one in vain: call "
    "self.breakpoint(rank=0) of the trainer on all of them"
)


class Debugger:
    """Opens python's debugger where somebody can answer it; elsewhere it says so, once, and nothing waits.

    Args:
        world: the processes of the run.
        say: takes a message and its level.

    Attributes:
        is_open: somebody is asked, here or on the process that this one waits for.
        times_open: how often somebody was.
    """

    def __init__(self, world: World, say: Callable[[str, str], None]) -> None:
        self._world, self._say = world, say
        self._said: set[str] = set()
        self._hold = Hold()
        self._bars = contextlib.ExitStack()
        self.is_open = False
        self.times_open = 0

    @contextlib.contextmanager
    def at_breakpoints(self, is_wanted: bool) -> Iterator[None]:
        """Open it at each ``breakpoint()`` of a block, unless somebody has chosen another debugger.

        Args:
            is_wanted: False where the environment names another one.
        """
        if not is_wanted or sys.breakpointhook is not sys.__breakpointhook__:
            yield
            return
        sys.breakpointhook = self._at_breakpoint
        try:
            yield
        finally:
            sys.breakpointhook = sys.__breakpointhook__

    def _at_breakpoint(self, *_: Any, **__: Any) -> None:
        if self._world.size > 1:
            self._say_once(_SEVERAL)
        elif self._has_terminal():
            self._open(_caller())

    def open_on(self, rank: int, frame: FrameType | None) -> None:
        """Open it on one process in a frame; the others wait until it leaves its first prompt. All must call it.

        Raises:
            ConfigError: when there is no such process.
        """
        if not 0 <= rank < self._world.size:
            raise ConfigError(f"breakpoint(rank={rank}): the run has processes 0 to {self._world.size - 1}")
        self._hold = self._world.hold()
        if self._world.size > 1 and self._world.is_main:
            self._say(f"process {rank} opens its debugger, and the others wait for it", "INFO")
        if rank != self._world.rank:
            self._wait()
        elif self._has_terminal():
            self._open(frame)
        else:
            self._hold.release()

    def _wait(self) -> None:
        """Wait here, where no failure detector takes a process for one that waits in an exchange."""
        self.is_open, self.times_open = True, self.times_open + 1
        while not self._hold.is_over():
            time.sleep(_LOOK_S)
        self.is_open = False

    def _open(self, frame: FrameType | None) -> None:
        """Stop at the next line of a frame; no call may follow in the engine, since it would stop there."""
        self.opened()
        _Prompt(self).set_trace(frame)

    @contextlib.contextmanager
    def after_errors(self, is_wanted: bool) -> Iterator[None]:
        """Open it where an error has left the user's own code, before it leaves a block."""
        try:
            yield
        except Exception as error:
            own = users_part(error.__traceback__)
            if is_wanted and own is not None and not is_lost_connection(error) and self._has_terminal():
                self._look_into(error, own)
            raise

    def _look_into(self, error: Exception, own: TracebackType) -> None:
        self._say(f"{type(error).__name__}: {text_of(error)}", "ERROR")
        prompt = _Prompt(self)
        self.opened()
        prompt.reset()
        prompt.interaction(None, own)

    def opened(self) -> None:
        """Put the bars away."""
        self.is_open, self.times_open = True, self.times_open + 1
        self._bars.enter_context(tqdm.external_write_mode(file=sys.stderr, nolock=True))

    def closed(self) -> None:
        """Let bars and other processes go on."""
        self._bars.close()
        self._hold.release()
        self.is_open = False

    def _has_terminal(self) -> bool:
        """Tell whether somebody can answer; say it once if not."""
        with contextlib.suppress(ValueError, AttributeError):  # it is closed, or None
            if sys.stdin.isatty():
                return True
        self._say_once(_NO_TERMINAL)
        return False

    def _say_once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self._say(text, "WARNING")


class _Prompt(pdb.Pdb):
    """Python's debugger, which says when it is left; a Ctrl-C stays a request to stop the run.

    Args:
        debugger: who is told.
    """

    def __init__(self, debugger: Debugger) -> None:
        super().__init__(nosigint=True)
        self._debugger = debugger

    def preloop(self) -> None:
        """Act before a prompt."""
        self._debugger.opened()
        super().preloop()

    def postloop(self) -> None:
        """Act when it is left."""
        super().postloop()
        self._debugger.closed()


def _caller() -> FrameType | None:
    """Return the frame that has called the caller of this function."""
    own = inspect.currentframe()
    return own.f_back.f_back if own and own.f_back else None
