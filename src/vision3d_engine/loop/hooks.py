"""The named moments of a run, and objects that act at them."""

from collections.abc import Callable, Sequence
from typing import Any

from vision3d_engine.core.errors import RegistrationError, did_you_mean, listed

TRAIN_MOMENTS = (
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
TEST_MOMENTS = ("before_test_epoch", "before_test_step", "after_test_step", "after_test_epoch")


PROBES: list[Callable[[], Any]] = []
"""Makers of hooks that every trainer and tester of this process gets, for tools that watch a user's script."""


class Hook:
    """Acts at moments of a run without subclassing its trainer.

    Override methods named like the trainer's or tester's (``before_train_step``, ``after_val_epoch``, ...), with the
    same arguments. They are called right after the trainer's own method, in the order in which hooks were added.
    `owner` is the trainer or tester. What a hook returns is ignored.
    """

    owner: Any = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        known = (*TRAIN_MOMENTS, *TEST_MOMENTS)
        for name in vars(cls):
            if name.startswith(("before_", "after_")) and name not in known:
                hint = did_you_mean(name, known)
                message = f"{cls.__name__}.{name} is never called{hint} (moments: {listed(known)})"
                raise RegistrationError(message)


class Events:
    """Calls whoever listens to the named moments of one trainer or tester; a moment without listeners costs nothing.

    Args:
        owner: the trainer or tester; its own methods come first.
        base: the engine's class whose empty methods need not be called.
        moments: names of the moments.
    """

    def __init__(self, owner: Any, base: type, moments: Sequence[str]) -> None:
        self._owner = owner
        self._base = base
        self._moments = moments
        self._hooks: list[Any] = []
        for make in PROBES:
            self._watch(make())
        self._listeners: dict[str, list[Callable[..., Any]]] = {}

    def add(self, hook: Any) -> None:
        """Add an object whose methods named like moments are called from now on."""
        if not any(callable(getattr(hook, moment, None)) for moment in self._moments):
            message = f"{hook!r} has no method that is ever called here (moments: {listed(self._moments)})"
            raise RegistrationError(message)
        if isinstance(hook, Hook):
            hook.owner = self._owner
        self._hooks.append(hook)
        self.bind()

    def _watch(self, probe: Any) -> None:
        probe.owner = self._owner
        self._hooks.append(probe)

    @property
    def hooks(self) -> list[Any]:
        """The objects that were added."""
        return self._hooks

    def bind(self) -> None:
        """Look up the listeners; called when a run begins, so that methods set on the object are found too."""
        self._listeners = {moment: self._find(moment) for moment in self._moments}

    def fire(self, moment: str, *args: Any) -> None:
        """Call all listeners of a moment."""
        for listener in self._listeners[moment]:
            listener(*args)

    def _find(self, moment: str) -> list[Callable[..., Any]]:
        is_default = getattr(type(self._owner), moment) is getattr(self._base, moment)
        own = [] if is_default and moment not in vars(self._owner) else [getattr(self._owner, moment)]
        return own + [method for hook in self._hooks if callable(method := getattr(hook, moment, None))]
