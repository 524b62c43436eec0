"""The first operation of a step that made NaN or infinity of finite numbers, forward or backward.

Infinity may be meant, as in a mask, and NaN may be thrown away. So each number that is not finite is followed from the
operation that made it to what is made of it, and the one is to blame that the loss, or the gradient of a parameter,
follows from.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.autograd.graph import Node
from torch.utils._python_dispatch import TorchDispatchMode

from vision3d_engine.core.tree import leaves
from vision3d_engine.replay.causes import CONSTANT, NOT_FOUND, OUTSIDE, OVERFLOW, cause_of_operation, cause_of_undefined
from vision3d_engine.replay.inside import module_of_node, notes_of
from vision3d_engine.replay.origin import Lineage, Origin, line_in, line_of_stack
from vision3d_engine.replay.values import INFINITY, NAN, all_finite, looked_at, trouble_of

_NO_SOURCE = re.compile(r"^_?(new_)?empty|^resize|^set_|as_strided|detach|alias|view")  # memory as it was
_LARGE = 0.4  # power of the largest number: above a root of it products overflow, and sums of products a little earlier


class _Call(NamedTuple):
    """An operation with what it was given.

    Attributes:
        name: how torch calls it.
        given: what it reads.
        broken: which of that was not finite, and what it held, before it ran, which may be in place.
        finite: where all of that was finite, if each number of the result is made of those at its place; else None.
    """

    name: str
    given: Any
    broken: list[tuple[Any, str]]
    finite: torch.Tensor | None


class Search:
    """Looks at each operation of a step; waits for the device at each.

    Args:
        running: returns the module that runs.
        is_idle: tells whether what runs now is of the replay and not of the step, so that nobody looks at it.
    """

    def __init__(self, running: Callable[[], str], is_idle: Callable[[], bool]) -> None:
        self._running, self._is_idle, self._is_forward = running, is_idle, True
        self._lineage, self._first = Lineage(), dict[str, Origin]()
        self._back = _BackwardSearch()
        self._outside: Origin | None = None
        self._untraceable: Origin | None = None
        self._of_loss: Origin | None = None
        self._of_results: Origin | None = None

    def know(self, value: Any, origin: Origin) -> None:
        """Let what follows from a value that is not finite before the step begins be traced to its origin."""
        if not self._lineage.put(value, origin):
            self._untraceable = self._untraceable or origin
        self._outside = self._outside or (None if origin.is_meant else origin)

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

    def follow_back(self, loss: Any) -> None:
        """Note what a loss follows from, and look at its backward pass."""
        self._of_loss = self._of_loss or self._behind(loss)
        self._back.watch(getattr(loss, "grad_fn", None))

    def judge(self, results: Any) -> None:
        """Note what the numbers that a step returns follow from."""
        self._of_results = self._behind(results)

    @property
    def suspect(self) -> Origin | None:
        """What is not finite so far, whatever follows from it; None where nothing is."""
        return self._outside or self._first.get(NAN) or self._first.get(INFINITY)

    @property
    def found(self) -> Origin:
        """What is to blame that the loss, else a gradient, else another number of the step is not finite."""
        if self._of_loss is None and self._back.found is not None:
            return self._beside_forward(self._back.found)
        traced = self._of_loss or self._of_results
        if traced is not None or self.suspect is None:
            return traced or NOWHERE
        return self.suspect if self.suspect is self._outside else replace(self.suspect, further=_UNTRACED)

    def _beside_forward(self, origin: Origin) -> Origin:
        """Return an origin of the backward pass that tells what the forward pass has made and thrown away."""
        made = self._first.get(NAN) or self._first.get(INFINITY)
        return origin if made is None else replace(origin, further=f"not in the loss, but made on the way: {made.head}")

    @property
    def has_reached_leaf(self) -> bool:
        """Whether a gradient that is not finite has come to a leaf, such as a parameter."""
        return self._back.found is not None

    def _behind(self, nest: Any) -> Origin | None:
        return self._lineage.first_of(leaf for _, leaf in leaves(nest) if trouble_of(leaf))

    def _look(self, call: _Call, returned: Any) -> None:
        if not self._is_forward or _NO_SOURCE.search(call.name):
            return
        for _, leaf in leaves(returned):
            if trouble := trouble_of(leaf):
                self._lineage.put(leaf, self._origin(call, leaf, trouble))

    def _origin(self, call: _Call, leaf: Any, trouble: str) -> Origin:
        """Return what a result follows from: NaN from NaN, infinity from either; else it has been made here."""
        if looked_at(partial(_is_new, call.finite), leaf, False):
            return self._made(call, leaf, trouble, OVERFLOW if _is_large(call.given) else cause_of_operation(call.name))
        sources = [source for source in call.broken if trouble in (source[1], INFINITY)]
        if sources:
            return self._lineage.first_of(value for value, _ in sources) or self._unknown(call, *sources[0])
        made = self._made(call, leaf, trouble, cause_of_undefined(call.name))
        infinite = self._lineage.first_of(value for value, _ in call.broken)
        return made if infinite is None or infinite.is_meant else replace(infinite, further=f"then NaN: {made}")

    def _made(self, call: _Call, leaf: torch.Tensor, trouble: str, cause: str) -> Origin:
        what = f"{call.name}, whose result {_shape(leaf)}holds {trouble}"
        made = Origin(what, cause, line_of_stack(), self._running())
        self._first.setdefault(trouble, made)
        return made

    def _unknown(self, call: _Call, source: Any, trouble: str) -> Origin:
        """Return the origin of what none of the operations has made; NaN may follow from what is known otherwise."""
        place, is_meant = (line_of_stack(), self._running()), trouble == INFINITY
        if not isinstance(source, torch.Tensor):
            return Origin(f"the number {source}, given to {call.name}", CONSTANT, *place, is_meant)
        if known := self._untraceable or (None if is_meant else self._outside or self._back.found):
            return known
        what = f"a tensor {_shape(source)}that holds {trouble} and came from outside of torch, given to {call.name}"
        origin = Origin(what, CONSTANT if is_meant else OUTSIDE, *place, is_meant)
        self._lineage.put(source, origin)
        return origin


class _BackwardSearch:
    """Follows gradients that are not finite from node to node.

    Attributes:
        found: the node to blame for the first gradient of a leaf that is not finite, or None.
    """

    def __init__(self) -> None:
        self._behind = dict[Node, Origin]()
        self._watched = set[Node]()
        self.found: Origin | None = None

    def watch(self, root: Node | None) -> None:
        """Look at the nodes that a gradient is walked back through."""
        pending = [root]
        while pending:
            node = pending.pop()
            if node is None or node in self._watched:
                continue
            self._watched.add(node)
            node.register_hook(partial(self._look, node))
            pending.extend(following for following, _ in node.next_functions)

    def _look(self, node: Node, into: Sequence[Any], out: Sequence[Any]) -> None:
        """Note what made the gradients that a node hands on, given these, and those that came to it."""
        broken = next((gradient for gradient in out if trouble_of(gradient)), None)
        origin = None if broken is None else self._behind.get(node) or _summed(node, broken)
        if not node.next_functions:
            self.found = self.found or origin
        for (following, _), gradient in zip(node.next_functions, into, strict=False):
            if following is not None and trouble_of(gradient):
                origin = origin or _made_back(node, gradient, out)
                self._behind.setdefault(following, origin)


def _summed(node: Node, gradient: Any) -> Origin:
    what = f"the gradient {_shape(gradient)}that comes to {node.name()}, which holds {trouble_of(gradient)}"
    return Origin(f"{what} as the sum of finite ones", OVERFLOW, _line_of_node(node), module_of_node(node))


def _made_back(node: Node, gradient: Any, out: Sequence[Any]) -> Origin:
    name, trouble = node.name(), trouble_of(gradient)
    is_hidden = trouble == NAN and any(looked_at(partial(_is_zero_where_nan, gradient), each, False) for each in out)
    cause = OVERFLOW if _is_large(out) else cause_of_operation(name)
    what = f"the gradient {_shape(gradient)}of {name}, which holds {trouble}{_OF_ZERO if is_hidden else ''}"
    return Origin(what, cause + (_HIDDEN if is_hidden else ""), _line_of_node(node), module_of_node(node))


def _is_zero_where_nan(into: torch.Tensor, out: torch.Tensor) -> bool:
    return into.shape == out.shape and not bool(out[into.detach().isnan()].any())


def _line_of_node(node: Node) -> str:
    return line_in("".join(notes_of(node).get("traceback_", ())))


class _Operations(TorchDispatchMode):
    """Hands each operation of a block on, with what it has returned.

    Args:
        look: takes the operation and what it has returned.
        is_idle: tells whether an operation is only made.
    """

    def __init__(self, look: Callable[[_Call, Any], None], is_idle: Callable[[], bool]) -> None:
        super().__init__()
        self._look, self._is_idle = look, is_idle

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        """Call the operation."""
        if self._is_idle():
            return func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        given = _read(name, args, kwargs or {})
        broken = [(leaf, trouble) for _, leaf in leaves(given) if (trouble := trouble_of(leaf))]
        call = _Call(name, given, broken, _finite_places(func, broken))
        returned = func(*args, **(kwargs or {}))
        self._look(call, returned)
        return returned


def _read(name: str, args: Any, kwargs: Mapping[str, Any]) -> Any:
    """Return what an operation reads of what it is given, without what it only writes."""
    return args[name == "copy_" :], {key: value for key, value in kwargs.items() if not key.startswith("out")}


def _finite_places(operation: Any, broken: list[tuple[Any, str]]) -> torch.Tensor | None:
    """Return at which places all is finite that an operation is given; None where that says nothing of its result."""
    if broken and torch.Tag.pointwise not in operation.tags:
        return None
    places = torch.tensor(True)
    for value, _ in broken:
        finite = looked_at(torch.isfinite, value, torch.tensor(False))
        places = places.to(finite.device) & finite
    return places


def _is_new(finite: torch.Tensor | None, numbers: torch.Tensor) -> bool:
    """Tell whether numbers of a result are not finite where all that they were made of was."""
    return finite is not None and bool((finite.to(numbers.device) & ~numbers.isfinite()).any())


def _shape(tensor: torch.Tensor) -> str:
    """Return a shape as python writes it, and a space; nothing where a tensor has none."""
    try:
        return f"{tuple(tensor.shape)} "
    except RuntimeError:  # of nested tensors
        return ""


def _is_large(nest: Any) -> bool:
    """Tell whether finite numbers in a nest are so large that a product of theirs overflows, whatever is done to them.

    What an operation has left in place does not count.
    """
    return any(looked_at(_is_large_leaf, leaf, False) for _, leaf in leaves(nest))


def _is_large_leaf(numbers: torch.Tensor) -> bool:
    if numbers.is_complex():
        return False
    finite = numbers if all_finite(numbers) else numbers[torch.isfinite(numbers)]
    return bool(finite.numel()) and finite.abs().max().item() > torch.finfo(numbers.dtype).max ** _LARGE


NOWHERE = Origin("not found: no operation of torch has made it of finite numbers", NOT_FOUND)
_UNTRACED = "it is the first in the step; whether what the step returns follows from it could not be traced"
_OF_ZERO = " (0 times infinity)"
_HIDDEN = (
    ". The gradient that came in is 0, as behind torch.where or a mask: these hide a number, but not its gradient, so "
    "change what goes into the operation"
)
