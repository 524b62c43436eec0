"""The first operation of a step that returned NaN or infinity out of finite numbers, forward or backward."""

import math
import re
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.graph import Node
from torch.utils._python_dispatch import TorchDispatchMode

from vision3d_engine.core.tracebacks import is_users
from vision3d_engine.core.tree import leaves
from vision3d_engine.replay.causes import OVERFLOW, cause_of_operation
from vision3d_engine.replay.inside import all_finite

_FRAME = re.compile(r'File "(.*?)", line (\d+)')
_NO_SOURCE = re.compile(r"empty|resize|set_|detach|alias|view")  # memory as it was, or nothing new
_OWN = "vision3d_engine/replay/"
_LARGE = 0.4  # power of the largest number: above a root of it products overflow, and sums of products a little earlier


@dataclass(frozen=True)
class Origin:
    """Where the first number that is not finite comes from.

    Attributes:
        what: an operation, a tensor of the batch, or a parameter.
        cause: what usually causes it.
        line: file and line in the script; empty where there is none.
        module: the module that ran; empty outside of all.
    """

    what: str
    cause: str
    line: str = ""
    module: str = ""

    def __str__(self) -> str:
        where = f" in {self.line}" if self.line else ""
        return f"{self.what}{where}{f' (module {self.module})' if self.module else ''}. Usually: {self.cause}"


class Search:
    """Looks at each operation of a step; waits for the device at each.

    Args:
        running: returns the module that runs.
        is_idle: tells whether what runs now is of the replay and not of the step, so that nobody looks at it.

    Attributes:
        forward: the first operation of the forward pass that is to blame, or None.
        backward: the same of the backward pass.
    """

    def __init__(self, running: Callable[[], str], is_idle: Callable[[], bool]) -> None:
        self._running, self._is_idle, self._is_forward = running, is_idle, True
        self.forward: Origin | None = None
        self.backward: Origin | None = None

    @contextmanager
    def in_forward(self) -> Iterator[None]:
        """Look at the operations of a block, and note for backward nodes which line has made them."""
        with torch.autograd.set_detect_anomaly(True, check_nan=False), _Operations(self._look, self._is_idle):
            yield

    @contextmanager
    def outside_forward(self) -> Iterator[None]:
        """Look at no operation of a block within that: it walks a loss back, and updates weights."""
        self._is_forward = False
        try:
            yield
        finally:
            self._is_forward = True

    def _look(self, name: str, inputs: Any, outputs: Any) -> None:
        if not self._is_forward or self.forward is not None:
            return
        if not _is_finite(outputs) and _is_finite(inputs) and not _NO_SOURCE.search(name):
            frames = [(frame.filename, frame.lineno or 0) for frame in traceback.extract_stack()]
            shape = next(tuple(leaf.shape) for _, leaf in leaves(outputs) if not _is_finite(leaf))
            self.forward = Origin(
                f"{name}, whose result {shape} is not finite",
                OVERFLOW if _is_large(inputs) else cause_of_operation(name),
                _line_of(frames),
                self._running(),
            )

    def follow_back(self, loss: Any) -> None:
        """Look at the backward pass of a loss."""
        pending, seen = [getattr(loss, "grad_fn", None)], set[Node]()
        while pending:
            node = pending.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            node.register_hook(lambda into, out, node=node: self._look_back(node, into, out))
            pending.extend(following for following, _ in node.next_functions)

    def _look_back(self, node: Node, into: Sequence[Any], out: Sequence[Any]) -> None:
        if self.backward is None and not _is_finite(into) and _is_finite(out):
            noted: Any = node.metadata
            stack = "".join(noted.get("traceback_", ()))
            frames = [(file, int(number)) for file, number in _FRAME.findall(stack)]
            name = node.name()
            cause = OVERFLOW if _is_large(out) else cause_of_operation(name)
            self.backward = Origin(f"the gradient of {name}, which is not finite", cause, _line_of(frames))


class _Operations(TorchDispatchMode):
    """Hands each operation of a block on, with what went in and what came out.

    Args:
        look: takes name, inputs and outputs; inputs that have not been finite come as NaN.
        is_idle: tells whether an operation is only made.
    """

    def __init__(self, look: Callable[[str, Any, Any], None], is_idle: Callable[[], bool]) -> None:
        super().__init__()
        self._look, self._is_idle = look, is_idle

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        """Call the operation."""
        if self._is_idle():
            return func(*args, **(kwargs or {}))
        given = args, kwargs or {}
        was_finite = _is_finite(given)  # before, since it may work in place
        returned = func(*args, **(kwargs or {}))
        self._look(func.overloadpacket.__name__, given if was_finite else math.nan, returned)
        return returned


def not_finite(nest: Any) -> list[str]:
    """Return the paths of the tensors and numbers in a nest that are not finite."""
    return [path for path, leaf in leaves(nest) if not _is_finite_leaf(leaf)]


def _is_finite(nest: Any) -> bool:
    return not not_finite(nest)


def _is_finite_leaf(leaf: Any) -> bool:
    if isinstance(leaf, torch.Tensor) and (leaf.is_floating_point() or leaf.is_complex()):
        return leaf.is_meta or all_finite(leaf.detach())
    return math.isfinite(leaf) if isinstance(leaf, float) else True


def _is_large(nest: Any) -> bool:
    """Tell whether finite numbers in a nest are so large that a product of theirs overflows, whatever is done to them.

    What an operation has left in place does not count.
    """
    return any(_is_large_leaf(leaf) for _, leaf in leaves(nest) if isinstance(leaf, torch.Tensor))


def _is_large_leaf(leaf: torch.Tensor) -> bool:
    if not leaf.is_floating_point() or leaf.is_meta:
        return False
    finite = leaf.detach()[torch.isfinite(leaf)].abs()
    return bool(finite.numel()) and finite.max().item() > torch.finfo(leaf.dtype).max ** _LARGE


def _line_of(frames: Sequence[tuple[str, int]]) -> str:
    """Return the innermost line of the script; of one that lies in a library the innermost line outside of torch."""
    torchs = str(torch.__path__[0])
    others = [frame for frame in frames if not frame[0].startswith(torchs) and _OWN not in frame[0]]
    own = [frame for frame in others if is_users(frame[0])] or others
    return f"{own[-1][0]}, line {own[-1][1]}" if own else ""
