"""An update that somebody looks at; a pass without observers has the plain one."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any, Protocol

from vision3d_engine.update.update import Update


class UpdateObserver(Protocol):
    """Looks at the parameters of an optimizer around its step."""

    @property
    def is_due(self) -> bool:
        """Whether to look at the update at hand."""
        ...

    def stepping(self, optimizer: Any) -> AbstractContextManager[None]:
        """Return a context around a step of an optimizer, which finds its gradients as they are before clipping."""
        ...


class WatchedUpdate(Update):
    """An `Update` with observers around each step of each optimizer.

    Args:
        parts: what an `Update` is made of.
        observers: who looks.
    """

    def __init__(self, *parts: Any, observers: Sequence[UpdateObserver]) -> None:
        super().__init__(*parts)
        self._observers = observers

    def _step(self, name: str | None, optimizer: Any, learns: bool) -> None:
        due = [each for each in self._observers if each.is_due] if learns else []
        if not due:
            super()._step(name, optimizer, learns)
            return
        with ExitStack() as stack:
            for observer in due:
                stack.enter_context(observer.stepping(optimizer))
            super()._step(name, optimizer, learns)
