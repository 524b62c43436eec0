"""What a script keeps that changes while it trains and is in no checkpoint, so that a resume would lose it."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
from torch import nn

from vision3d_engine.core.compare import as_bytes
from vision3d_engine.core.errors import shortened
from vision3d_engine.core.portable import GeneratorState, has_state, with_state
from vision3d_engine.core.tree import entries
from vision3d_engine.data.loader_sets import sets_of
from vision3d_engine.optim.named_optimizers import optimizers_of
from vision3d_engine.optim.named_schedules import schedules_of

_NUMBERS = (bool, int, float, complex, str, bytes, type(None), np.generic)
_MAX_NAMES = 8
_DEPTH, _MOST = 6, 5000
_NEW, _SAID = object(), object()
# Names that the engine gives attributes of a trainer after its first ones.
_LATER = ("_run", "_streamed")


class Unsaved:
    """Remembers how attributes of a trainer and of its hooks, and buffers of its model, were when a run began.

    Looked at are numbers, text, tensors, arrays and generators, alone and in containers. What lives in objects of other
    classes is not seen.

    Args:
        trainer: whose attributes, hooks and model count.
        registered: the user's objects that are saved, by name.
    """

    def __init__(self, trainer: Any, registered: Mapping[str, Any]) -> None:
        self._trainer, self._registered = trainer, registered
        self._engines = {*vars(trainer), *_LATER}
        self._last_epoch = 0
        self._attributes: dict[str, Any] = {}
        self._buffers: dict[str, Any] = {}

    def with_state(self) -> Iterator[str]:
        """Say which attributes of the trainer have a state that no checkpoint would hold."""
        trainer = self._trainer
        known = [trainer.train_loader, *sets_of(trainer.val_loader).values()]
        known += schedules_of(trainer.scheduler).values()
        known += optimizers_of(trainer.optimizer).values()
        known += trainer._context.metrics.registered.values()  # noqa: SLF001  the engine's own
        known += [trainer.model, *trainer.model.modules(), *trainer._hooks.added, *self._registered.values()]  # noqa: SLF001  the engine's own
        for name, part in vars(trainer).items():
            is_known = name in self._engines or isinstance(part, type) or any(part is one for one in known)
            if not is_known and _safely(lambda part=part: has_state(part) and part.state_dict()):
                yield f"self.{name} has a state that is not saved: call self.register_state('{name}', self.{name})"

    def note(self) -> None:
        """Remember how all is now; `said` compares with it for two epochs."""
        self._last_epoch = self._trainer.epoch + 2
        self._attributes = {name: _portrait(value) for name, value in self._held()}
        self._buffers = {name: _portrait(value) for name, value in _volatile_buffers(self._trainer.model)}

    def said(self) -> Iterator[str]:
        """Say what has changed, each thing once; to be called when a checkpoint is saved."""
        if self._trainer.epoch > self._last_epoch:
            return
        if names := _changed(self._attributes, self._held()):
            yield (
                f"{shortened(names, _MAX_NAMES)} changed in training and will be lost by a resume, which starts "
                "with what the constructor makes: keep it in an object with state_dict and load_state_dict (or in a "
                "generator) and register that by self.register_state(name, object)"
            )
        if names := _changed(self._buffers, _volatile_buffers(self._trainer.model)):
            yield (
                f"buffers of the model that no checkpoint holds have changed: {shortened(names, _MAX_NAMES)}. Unless "
                "they are computed anew, register them with persistent=True"
            )

    def _held(self) -> Iterator[tuple[str, Any]]:
        """Yield attributes by name, but for those that are saved."""
        trained = (group["params"] for group in getattr(self._trainer.optimizer, "param_groups", ()))
        saved = {id(parameter) for parameter in chain.from_iterable(trained)}
        registered = self._registered.values()
        saved |= {id(part.generator if isinstance(part, GeneratorState) else part) for part in registered}
        owners = {"self": self._trainer}
        owners |= {type(hook).__name__: hook for hook in self._trainer._hooks.added if id(hook) not in saved}  # noqa: SLF001  the engine's own
        for owner, holder in owners.items():
            for name, value in getattr(holder, "__dict__", {}).items():
                is_engines = holder is self._trainer and name in self._engines
                if not is_engines and id(value) not in saved:
                    yield f"{owner}.{name}", value


def _volatile_buffers(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the buffers that are not in the state of a model."""
    state = model.state_dict(keep_vars=True)
    saved = {id(value) for value in state.values()}
    yield from ((name, each) for name, each in model.named_buffers() if name not in state and id(each) not in saved)


def _changed(before: dict[str, Any], now: Iterator[tuple[str, Any]]) -> list[str]:
    """Return the names that are new, or whose values are others now, and take these over."""
    portraits = {name: _portrait(value) for name, value in now}
    known = {name: before.get(name, _NEW) for name in portraits}
    names = [name for name, portrait in portraits.items() if known[name] is not _SAID and known[name] != portrait]
    before.update(dict.fromkeys(names, _SAID))
    return [name for name in names if portraits[name] is not None]


def digest(value: Any) -> bytes:
    """Return a hash that is the same for equal contents, on any process; of spread tensors only that they are there."""
    return hashlib.blake2b(repr(_portrait(value)).encode(errors="surrogatepass")).digest()


def _portrait(value: Any) -> Any:
    """Return what is equal for equal contents; None of what cannot be looked at, or is saved with the optimizer."""
    return _safely(lambda: _Portrait().of(value))


def _safely(look: Callable[[], Any]) -> Any:
    """Return what a look at a script's own object gives; None where it raises."""
    try:
        return look()
    except Exception:  # noqa: BLE001  whatever the object does, the run goes on
        return None


class _Portrait:
    """Walks one attribute; a large one is known by its first members, so that no save takes long."""

    def __init__(self) -> None:
        self._left = _MOST

    def of(self, value: Any, depth: int = 0) -> Any:
        """Return a nest of names, numbers and hashes."""
        self._left -= 1
        part = with_state(value)
        if part is not value:  # a generator
            return self.of(part.state_dict(), depth)
        held = entries(value) if depth < _DEPTH and self._left > 0 and not _is_engines(value) else None
        if held is not None:
            few = islice(held.items(), max(self._left, 0))
            return [len(held), *((repr(key), self.of(each, depth + 1)) for key, each in few)]
        if isinstance(value, torch.Tensor | np.ndarray):
            return _digest(value)
        if isinstance(value, set | frozenset):
            return [len(value), *sorted(map(repr, islice(value, _MOST)))]
        return repr(value) if isinstance(value, _NUMBERS) else type(value).__name__


def _is_engines(value: Any) -> bool:
    return type(value).__module__.startswith("vision3d_engine.")


def _digest(value: Any) -> Any:
    """Return a hash of the bits of a tensor or array."""
    if not _has_bits(value):
        return type(value).__name__
    return f"{value.dtype}{tuple(value.shape)}", hashlib.blake2b(as_bytes(value)).digest()


def _has_bits(value: Any) -> bool:
    """Tell whether it is a dense block of numbers, which all processes have."""
    if isinstance(value, np.ndarray):
        return value.dtype != object
    is_plain = type(value) in {torch.Tensor, nn.Parameter} and value.layout == torch.strided
    return is_plain and not value.is_meta and not value.is_nested
