"""Marks around the parts of training steps that are looked at; other steps know nothing of them."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

#: returns a context around a part of a step, given its name.
Mark = Callable[[str], AbstractContextManager[Any]]


def unmarked(_part: str) -> AbstractContextManager[Any]:
    """Mark nothing."""
    return nullcontext()


class StepMarks:
    """Knows where the parts of a step begin and end: ``forward``, ``backward``, ``optimizer`` and ``hooks``.

    Args:
        owners: the objects that make a step. Each has ``PARTS``: by the name of an attribute, a function or functions
            that are called one after the other, the part that it belongs to.
    """

    def __init__(self, *owners: Any) -> None:
        self._owners = owners

    @contextmanager
    def marked(self, mark: Mark) -> Iterator[None]:
        """Mark the parts of a step that is made in a block."""
        marks = [mark]
        with ExitStack() as stack:
            for owner in self._owners:
                parts = {name: _marked(getattr(owner, name), part, marks) for name, part in owner.PARTS.items()}
                stack.enter_context(_exchanged(owner, parts))
            stack.callback(marks.__setitem__, 0, unmarked)  # what was put around a part in the block stays
            yield


class _MarkedListeners:
    """Functions that are called one after the other, all of them in one mark."""

    def __init__(self, listeners: Iterable[Any], enter: Callable[[], AbstractContextManager[Any]]) -> None:
        self._listeners, self._enter = listeners, enter

    def __iter__(self) -> Iterator[Any]:
        """Yield them in the mark, which ends behind the last one."""
        with self._enter():
            yield from self._listeners


def _marked(value: Any, part: str, marks: list[Mark]) -> Any:
    """Return a function, or functions, that run in a mark."""

    def call(*args: Any, **options: Any) -> Any:
        with marks[0](part):
            return value(*args, **options)

    return call if callable(value) else _MarkedListeners(value, lambda: marks[0](part))


@contextmanager
def _exchanged(owner: Any, values: dict[str, Any]) -> Iterator[None]:
    """Let attributes have other values in a block; those that the block itself sets stay."""
    own = vars(owner)
    before = {name: own[name] for name in values if name in own}
    own.update(values)
    try:
        yield
    finally:
        for name in [name for name, value in values.items() if own.get(name) is value]:
            del own[name]
            own.update({name: before[name]} if name in before else {})
