"""What a script keeps that changes while it trains and is in no checkpoint, so that a resume would lose it."""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from vision3d_engine.core.compare import as_bytes
from vision3d_engine.core.errors import shortened
from vision3d_engine.core.portable import GeneratorState, has_state, with_state
from vision3d_engine.core.tree import entries
from vision3d_engine.optim.named_optimizers import optimizers_of
from vision3d_engine.optim.named_schedules import schedules_of

_NUMBERS = (bool, int, float, complex, str, bytes, type(None), np.generic)
_MAX_NAMES = 8
_DEPTH = 6


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
        self._last_epoch = 0
        self._attributes: dict[str, Any] = {}
        self._buffers: dict[str, Any] = {}

    def with_state(self) -> Iterator[str]:
        """Say which attributes of the trainer have a state that no checkpoint would hold."""
        trainer = self._trainer
        known = [trainer.train_loader, trainer.val_loader, *schedules_of(trainer.scheduler).values()]
        known += optimizers_of(trainer.optimizer).values()
        known += [trainer.model, *trainer.model.modules(), *trainer._hooks.added, *self._registered.values()]  # noqa: SLF001  the engine's own
        for name, part in vars(trainer).items():
            is_ours = name.startswith("_") or any(part is one for one in known)
            if not is_ours and has_state(part) and part.state_dict():
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
        saved = {id(part.generator if isinstance(part, GeneratorState) else part) for part in self._registered.values()}
        owners = {"self": self._trainer}
        owners |= {type(hook).__name__: hook for hook in self._trainer._hooks.added if id(hook) not in saved}  # noqa: SLF001  the engine's own
        for owner, holder in owners.items():
            for name, value in getattr(holder, "__dict__", {}).items():
                if id(value) not in saved:
                    yield f"{owner}.{name}", value


def _volatile_buffers(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the buffers that are not in the state of a model."""
    state = model.state_dict(keep_vars=True)
    saved = {id(value) for value in state.values()}
    yield from ((name, each) for name, each in model.named_buffers() if name not in state and id(each) not in saved)


def _changed(before: dict[str, Any], now: Iterator[tuple[str, Any]]) -> list[str]:
    """Return the names whose values are others now, and forget these."""
    names = [name for name, value in now if name in before and before[name] != _portrait(value)]
    for name in names:
        del before[name]
    return names


def digest(value: Any) -> bytes:
    """Return a hash that is the same for equal contents, on any process; of spread tensors only that they are there."""
    return hashlib.blake2b(repr(_portrait(value)).encode(errors="surrogatepass")).digest()


def _portrait(value: Any, depth: int = 0) -> Any:
    """Return what is equal for equal contents."""
    part = with_state(value)
    if part is not value:  # a generator
        return _portrait(part.state_dict())
    held = entries(value) if depth < _DEPTH else None
    if held is not None:
        return [(repr(key), _portrait(each, depth + 1)) for key, each in held.items()]
    if isinstance(value, torch.Tensor | np.ndarray):
        return _bits(value)
    is_set = isinstance(value, set | frozenset)
    return sorted(map(repr, value)) if is_set else repr(value) if isinstance(value, _NUMBERS) else type(value).__name__


def _bits(value: Any) -> Any:
    """Return a hash of the bits of a tensor or array; what an optimizer may train is saved with it."""
    if getattr(value, "requires_grad", False) or not _has_bits(value):
        return None
    return f"{value.dtype}{tuple(value.shape)}", hashlib.blake2b(as_bytes(value)).digest()


def _has_bits(value: Any) -> bool:
    """Tell whether it is a dense block of numbers, which all processes have."""
    if isinstance(value, np.ndarray):
        return value.dtype != object
    return type(value) is torch.Tensor and value.layout == torch.strided and not value.is_meta
