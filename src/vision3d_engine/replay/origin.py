"""Where numbers that are not finite come from: in words, and from operation to operation."""

import linecache
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch

from vision3d_engine.core.tracebacks import is_users, places_in
from vision3d_engine.replay.values import memory_of

_OWN = "vision3d_engine/replay/"
_LONGEST_SOURCE = 100


@dataclass(frozen=True)
class Origin:
    """Where the first number that is not finite comes from.

    Attributes:
        what: an operation, a tensor of the batch, or a parameter.
        cause: what usually causes it.
        line: file and line in the script, with its text; empty where there is none.
        module: the module that ran, with the number of its call; empty outside of all.
        is_meant: an infinity that the script has written down, as masks do, and that no operation has made.
        further: what else is to be said, in a line of its own.
    """

    what: str
    cause: str
    line: str = ""
    module: str = ""
    is_meant: bool = False
    further: str = ""

    @property
    def head(self) -> str:
        """What it is, and where."""
        where = f", in {self.line}" if self.line else ""
        return f"{self.what}{where}{f' (module {self.module})' if self.module else ''}"

    def __str__(self) -> str:
        further = f"\n  {self.further}" if self.further else ""
        return f"{self.head}. Usually: {self.cause}{further}"


class Lineage:
    """Which origin the numbers that are not finite follow from, for as long as their memory is used."""

    def __init__(self) -> None:
        self._origins = WeakKeyDictionary[torch.UntypedStorage, Origin]()
        self._places = dict[Origin, int]()

    def put(self, value: Any, origin: Origin) -> bool:
        """Let what follows from a tensor have this origin; tell whether it can be followed, as arrays cannot."""
        self._places.setdefault(origin, len(self._places))
        memory = memory_of(value)
        if memory is not None:
            self._origins[memory] = origin
        return memory is not None

    def first_of(self, values: Iterable[Any]) -> Origin | None:
        """Return the first origin of several tensors; None where none is known."""
        memories = [memory for memory in map(memory_of, values) if memory is not None]
        known = [self._origins[memory] for memory in memories if memory in self._origins]
        return min(known, key=self._places.__getitem__, default=None)


def line_of_stack() -> str:
    """Return the line of the script that runs."""
    return _line_of([(frame.filename, frame.lineno or 0) for frame in traceback.extract_stack()])


def line_in(stack: str) -> str:
    """Return the line of the script in a stack that python has printed."""
    return _line_of(places_in(stack))


def _line_of(frames: Sequence[tuple[str, int]]) -> str:
    """Return the innermost line of the script; of one that lies in a library the innermost line outside of torch."""
    torchs = str(torch.__path__[0])
    others = [frame for frame in frames if not frame[0].startswith(torchs) and _OWN not in frame[0]]
    own = [frame for frame in others if is_users(frame[0])] or others
    return _with_source(*own[-1]) if own else ""


def _with_source(file: str, number: int) -> str:
    source = linecache.getline(file, number).strip()
    shown = source if len(source) <= _LONGEST_SOURCE else f"{source[:_LONGEST_SOURCE]}..."
    return f"{file}, line {number}" + (f": `{shown}`" if shown else "")
