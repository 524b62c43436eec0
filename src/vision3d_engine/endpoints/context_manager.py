"""Named intermediate tensors, grouped by scope; the trainers and testers clear them before every step."""

import warnings
from typing import Any, Self

from torch import Tensor


class ContextManager:
    """A store of named values that lives for one step.

    ::

        context = get_context_manager()
        with context.enter_scope("encoder"):
            context.register("features", features)       # stored as "encoder/features"
        context.get(full_name="encoder/features")
    """

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}
        self._scopes: list[str] = []
        #: whether anything was registered or entered since the last `clear`.
        self.is_used = False

    def register(self, name: str, value: Any, retain_grad: bool = True) -> None:
        """Store a value under the current scope.

        A tensor inside the graph keeps its gradient after the backward pass (``Tensor.retain_grad``) unless
        ``retain_grad`` is False.
        """
        if isinstance(value, Tensor) and retain_grad and value.requires_grad:
            value.retain_grad()
        self.is_used = True
        self._values[self._full_name(name)] = value

    def get(self, name: str | None = None, full_name: str | None = None) -> Any:
        """Return a value by its name in the current scope or by its full name; None, with a warning, if unknown."""
        if full_name is None:
            full_name = self._full_name(name or "")
        if full_name not in self._values:
            known = ", ".join(self._values) or "none"
            warnings.warn(f"no value '{full_name}' in the ContextManager (registered: {known})", stacklevel=2)
        return self._values.get(full_name)

    def clear(self) -> None:
        """Forget all values and leave all scopes."""
        self._values.clear()
        self._scopes.clear()
        self.is_used = False

    def enter_scope(self, scope_name: str) -> Self:
        """Enter a scope, to be left by `exit_scope` or at the end of a ``with`` block."""
        self._scopes.append(scope_name)
        self.is_used = True
        return self

    def exit_scope(self) -> None:
        """Leave the innermost scope; outside all scopes nothing happens."""
        if self._scopes:
            self._scopes.pop()

    @property
    def scope(self) -> str | None:
        """The current scope, such as ``"encoder/block1"``."""
        return "/".join(self._scopes) or None

    @property
    def data_dict(self) -> dict[str, Any]:
        """All values by full name."""
        return self._values

    @property
    def data_keys(self) -> list[str]:
        """All full names."""
        return list(self._values)

    def _full_name(self, name: str) -> str:
        return "/".join([*self._scopes, name])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.exit_scope()

    def __repr__(self) -> str:
        return f"ContextManager(scope={self.scope!r}, names={self.data_keys})"


_SHARED = ContextManager()


def get_context_manager() -> ContextManager:
    """Return the store that all models, losses and hooks of this process share."""
    return _SHARED


def clear_context_manager() -> None:
    """Clear the shared store, as the engine does before every step."""
    _SHARED.clear()
