"""The named moments at which hooks act, and who is called at each."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

from vision3d_engine.core.errors import RegistrationError, did_you_mean, listed
from vision3d_engine.metrics.stopwatch import Stopwatch

TRAIN_HOOKS = (
    "before_load",
    "before_train",
    "before_train_epoch",
    "before_train_step",
    "after_backward",
    "after_train_step",
    "after_log",
    "after_train_epoch",
    "before_val_epoch",
    "before_val_step",
    "after_val_step",
    "after_val_epoch",
    "after_train",
)
STEP_HOOKS = ("before_train_step", "after_backward", "after_train_step")
TEST_HOOKS = ("before_test_epoch", "before_test_step", "after_test_step", "after_test_epoch")


PROBES: list[Callable[[], Any]] = []
"""Makers of hooks that every trainer and tester of this process gets, for tools that watch a script; they act last."""


class Hook:
    """Acts at moments of a run without subclassing its trainer.

    Override methods named like the trainer's or tester's (``before_train_step``, ``after_val_epoch``, ...), with the
    same arguments. They are called right after the trainer's own method, in the order in which hooks were added.
    `owner` is the trainer or tester. What a hook returns is ignored.
    """

    owner: Any = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        known = (*TRAIN_HOOKS, *TEST_HOOKS)
        for name in vars(cls):
            if name.startswith(("before_", "after_")) and name not in known:
                hint = did_you_mean(name, known)
                message = f"{cls.__name__}.{name} is never called{hint} (moments: {listed(known)})"
                raise RegistrationError(message)


class Hooks:
    """Calls whoever listens to the named moments of one trainer or tester; a moment without listeners costs nothing.

    Args:
        owner: the trainer or tester; its own methods come first.
        base: the engine's class whose empty methods need not be called.
        names: names of the moments.
    """

    def __init__(self, owner: Any, base: type, names: Sequence[str]) -> None:
        self._owner = owner
        self._base = base
        self.added: list[Any] = []
        self._probes: list[Any] = []
        self._listeners: dict[str, list[Callable[..., Any]]] = {name: [] for name in names}
        self._watch: Stopwatch | None = None
        for make in PROBES:
            self._adopt(make(), self._probes)

    def add(self, hook: Any) -> None:
        """Add an object whose methods named like moments are called from now on."""
        if not any(callable(getattr(hook, name, None)) for name in self._listeners):
            message = f"{hook!r} has no method that is ever called here (moments: {listed(self._listeners)})"
            raise RegistrationError(message)
        self._adopt(hook, self.added)
        self.bind()

    def add_last(self, hook: Hook) -> None:
        """Add a hook of the engine's own, which acts after all of the script's."""
        self._adopt(hook, self._probes)
        self.bind()

    def _adopt(self, hook: Any, others: list[Any]) -> None:
        if isinstance(hook, Hook):
            hook.owner = self._owner
        others.append(hook)

    def measure(self, watch: Stopwatch) -> None:
        """Let the hooks of training steps take their time, which costs steps without hooks nothing."""
        self._watch = watch

    def bind(self) -> None:
        """Look up the listeners; called when a run starts, so that methods set on the object are found too."""
        for name, listeners in self._listeners.items():
            listeners[:] = self._find(name)

    def of(self, name: str) -> Sequence[Callable[..., Any]]:
        """Return the listeners of a moment, for who calls them at every step; the list follows later changes."""
        return self._listeners[name]

    def fire(self, name: str, *args: Any) -> None:
        """Call all listeners of a moment."""
        for listener in self._listeners[name]:
            listener(*args)

    def is_default(self, name: str) -> bool:
        """Tell whether a method of the owner is the engine's own, neither overridden nor set on the object."""
        return getattr(type(self._owner), name) is getattr(self._base, name) and name not in vars(self._owner)

    def _find(self, name: str) -> list[Callable[..., Any]]:
        own = [] if self.is_default(name) else [getattr(self._owner, name)]
        hooks = [*self.added, *self._probes]
        found = own + [method for hook in hooks if callable(method := getattr(hook, name, None))]
        watch = self._watch if name in STEP_HOOKS else None
        return found if watch is None else [watch.timed(name, each) for each in found]


class _Led:
    """The listeners of a moment with others before them; both may still change."""

    def __init__(self, first: Iterable[Callable[..., Any]], rest: Iterable[Callable[..., Any]]) -> None:
        self._first, self._rest = first, rest

    def __iter__(self) -> Iterator[Callable[..., Any]]:
        """Yield all of them in their order."""
        return chain(self._first, self._rest)


def led(first: Iterable[Callable[..., Any]], rest: Iterable[Callable[..., Any]]) -> Iterable[Callable[..., Any]]:
    """Return the listeners of a moment with others before them; both may still change. Once is enough."""
    return rest if isinstance(rest, _Led) else _Led(first, rest)
