"""Named intermediate tensors, grouped by scope; the trainers and testers clear theirs before every step."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Self

import torch
from torch import Tensor

from vision3d_engine.core.errors import did_you_mean, listed
from vision3d_engine.core.tree import leaves


class ContextManager:
    """A store of named values that lives for one step.

    ::

        context = get_context_manager()
        with context.enter_scope("encoder"):
            context.register("features", features)       # stored as "encoder/features"
        context.get(full_name="encoder/features")

    Attributes:
        is_used: whether anything was registered or entered since the last `clear`.
    """

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}
        self._scopes: list[str] = []
        self._is_claimed = False
        self.is_used = False

    def register(self, name: str, value: Any, retain_grad: bool = True) -> None:
        """Store a value under the current scope.

        Tensors inside the graph, also those in a nest, keep their gradient after the backward pass
        (``Tensor.retain_grad``) unless ``retain_grad`` is False. A forward pass that activation checkpointing repeats
        in the backward pass registers nothing again.
        """
        self.put(self.full_name(name), value, retain_grad)

    def put(self, full_name: str, value: Any, retain_grad: bool = True) -> None:
        """Store a value under its full name, whatever the current scope; else as `register`."""
        if is_recomputing() and not self._lacks_gradient(full_name):
            return
        if retain_grad:
            for tensor in tensors_in(value):
                if tensor.requires_grad:
                    tensor.retain_grad()
        self.is_used = True
        self._values[full_name] = value

    def _lacks_gradient(self, full_name: str) -> bool:
        """Tell whether a value is there without a gradient, which a reentrant checkpoint makes in the repetition."""
        found = self._values.get(full_name)
        return found is not None and not any(each.retains_grad for each in tensors_in(found))

    def get(self, name: str | None = None, full_name: str | None = None) -> Any:
        """Return a value by its name in the current scope or by its full name; None, with a warning, if unknown."""
        if full_name is None:
            full_name = self.full_name(name or "")
        if full_name not in self._values:
            hint, known = did_you_mean(full_name, self._values), listed(self._values)
            message = f"no value '{full_name}' in the ContextManager{hint} (registered: {known})"
            warnings.warn(message, stacklevel=2)
        return self._values.get(full_name)

    def full_name(self, name: str) -> str:
        """Return a name of the current scope with its scopes, such as ``"encoder/block1/features"``."""
        return "/".join([*self._scopes, name])

    def clear(self) -> None:
        """Forget all values and leave all scopes."""
        self._values.clear()
        self._scopes.clear()
        self.is_used = False

    def retained(self) -> list[Tensor]:
        """Return all tensors that keep a gradient of the backward pass, each once."""
        found = {id(each): each for value in self._values.values() for each in tensors_in(value)}
        return [each for each in found.values() if each.retains_grad]

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

    @contextmanager
    def active(self) -> Iterator[Self]:
        """Let `get_context_manager` return this store in a block of this thread."""
        token = _CURRENT.set(self)
        try:
            yield self
        finally:
            _CURRENT.reset(token)

    def claim(self) -> bool:
        """Give the store to an owner; tell whether it had none."""
        was_claimed, self._is_claimed = self._is_claimed, True
        return not was_claimed

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.exit_scope()

    def __repr__(self) -> str:
        return f"ContextManager(scope={self.scope!r}, names={self.data_keys})"


# New threads begin without a value, so replicas of a model and threads that load data do not share a store.
_CURRENT: ContextVar[ContextManager] = ContextVar("endpoints")


def get_context_manager() -> ContextManager:
    """Return the store of the trainer or tester that runs in this thread; between runs, that of the one made last.

    Every other thread has one of its own. Backward passes on a device run in threads of torch, where what is registered
    in the store that is returned there is lost: let a backward hook keep the store of its forward pass.
    """
    store = _CURRENT.get(None)
    if store is None:
        store = ContextManager()
        if not _is_walking_back():  # torch's threads never end, and nobody would clear it
            _CURRENT.set(store)
    return store


def claim_context_manager() -> ContextManager:
    """Return a store for a trainer or tester: that of the thread, which models may have kept, or a new one."""
    store = get_context_manager()
    if not store.claim():
        store = ContextManager()
        store.claim()
        _CURRENT.set(store)
    return store


def clear_context_manager() -> None:
    """Clear the store of this thread, as the engine does before every step."""
    get_context_manager().clear()


def tensors_in(value: Any) -> list[Tensor]:
    """Return the tensors of a nest."""
    return [value] if isinstance(value, Tensor) else [leaf for _, leaf in leaves(value) if isinstance(leaf, Tensor)]


def is_recomputing() -> bool:
    """Tell whether a forward pass is repeated in a backward pass, whose own hooks run without gradients."""
    return torch.is_grad_enabled() and _is_walking_back()


def _is_walking_back() -> bool:
    return torch._C._current_graph_task_id() != -1  # noqa: SLF001  torch has no public way to ask
