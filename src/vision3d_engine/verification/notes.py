"""What is noted of a run at a moment: digests and short values, by part and name."""

import hashlib
import re
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch.nn.parameter import is_lazy
from torch.utils.data import DataLoader

from vision3d_engine.core.compare import as_bytes
from vision3d_engine.core.portable import with_state
from vision3d_engine.core.seeding import host_states
from vision3d_engine.core.tree import is_container, leaves
from vision3d_engine.data.loader_sets import sets_of
from vision3d_engine.data.sample_seeds import SeededDataset
from vision3d_engine.loop.result_checks import as_numbers
from vision3d_engine.run.resume_state import has_state
from vision3d_engine.verification.places import STEPS

_MAX_SAMPLES = 256
_WITH_STATES = ("after_train_step", "before_train_epoch", "after_train_epoch", "before_val_epoch", "after_val_epoch")
# What has a part of its own among the notes.
_REGISTERED = ("model", "optimizer", "scheduler", "train_loader", "val_loader")
_LIBRARIES = {"vision3d_engine", "torch", "numpy", "builtins"}
# Attributes that are larger are data rather than state.
_MOST_NUMBERS, _MOST_ENTRIES, _LONGEST_TEXT, _DEEPEST = 100_000, 1000, 60, 20


def parts_of(owner: Any, moment: str, args: tuple[Any, ...]) -> dict[str, Any]:
    """Return the bits of a trainer at a moment, by part; the host waits for the device.

    Args:
        owner: the trainer.
        moment: name of the hook.
        args: what the hook was called with.
    """
    random = {name: _hash(state) for name, state in host_states().items()}
    parts: dict[str, Any] = {"step": owner.total_steps, "random": random, "attributes": dict(_attributes(owner))}
    if moment in STEPS:
        parts["batch"] = dict(_rows(args[-1]))
    elif args and isinstance(args[-1], Mapping):
        parts["results"] = {name: repr(value) for name, value in as_numbers(args[-1]).items()}
    if moment == "after_backward":
        parts["gradients"] = _digests({name: p.grad for name, p in owner.model.named_parameters()})
    return parts | _states(owner) if moment in _WITH_STATES else parts


def _states(owner: Any) -> dict[str, dict[str, str]]:
    """Return what a checkpoint holds, and the buffers that it does not hold."""
    return {
        "weights": _digests({**owner.model.state_dict(), **dict(owner.model.named_buffers())}),
        "optimizer": _digests(owner.optimizer.state_dict()),
        "schedule": {} if owner.scheduler is None else _digests(owner.scheduler.state_dict()),
        "states": _digests({name: part.state_dict() for name, part in _registered_states(owner).items()}),
    }


def _registered_states(owner: Any) -> dict[str, Any]:
    return owner._run.resume_state.registered  # noqa: SLF001  the engine's own


# ------------------------------------------------------------------------------------------- attributes


def _attributes(owner: Any) -> Iterator[tuple[str, str]]:
    """Yield the attributes of a trainer, its hooks, modules and data sets that may count or draw, with their state."""
    registered = [*(getattr(owner, name) for name in _REGISTERED), *_registered_states(owner).values()]
    for path, part in _holders(owner):
        for name, value in getattr(part, "__dict__", {}).items():
            is_noted = any(value is each for each in registered if each is not None)
            is_torchs = isinstance(part, torch.nn.Module) and name.startswith("_")
            if not (is_noted or is_torchs) and (text := _state_text(value)) is not None:
                yield f"{path}.{name}", text
    saved = owner.model.state_dict()
    for name, buffer in owner.model.named_buffers():
        if name not in saved:
            yield f"self.model.{name}, a buffer with persistent=False", _digest(buffer)


def _holders(owner: Any) -> Iterator[tuple[str, Any]]:
    """Yield the objects of a script whose attributes may be forgotten, each with its name."""
    yield "self", owner
    states = _registered_states(owner)
    for name, part in vars(owner).items():
        is_noted = name in _REGISTERED or any(part is state for state in states.values())
        if not is_noted and type(part).__module__.partition(".")[0] not in _LIBRARIES:
            yield f"self.{name}", part
    for hook in owner._hooks.added:  # noqa: SLF001  the engine's own
        yield type(hook).__name__, hook
    for name, part in states.items():
        yield f"state '{name}'", part
    for name, module in owner.model.named_modules():
        yield f"self.model.{name}".rstrip("."), module
    for path, loader in _loaders(owner):
        if not isinstance(loader, DataLoader):
            yield path, loader
        dataset = getattr(loader, "dataset", None)
        yield f"{path}.dataset", dataset.dataset if isinstance(dataset, SeededDataset) else dataset


def _loaders(owner: Any) -> Iterator[tuple[str, Any]]:
    yield "self.train_loader", owner.train_loader
    for name, loader in sets_of(owner.val_loader).items():
        yield "self.val_loader" + ("" if name is None else f"[{name!r}]"), loader


def _state_text(value: Any, above: tuple[Any, ...] = ()) -> str | None:
    """Return a text that tells a value from another one, None for what has no state that is known how to read.

    What holds itself, and what lies deeper than a state does, is not opened.
    """
    if isinstance(value, int | float | complex | None):
        return repr(value)
    if isinstance(value, torch.Tensor | np.ndarray):
        return _digest(value) if np.prod(value.shape) <= _MOST_NUMBERS else None
    if is_container(value) or isinstance(value, set | deque):
        if len(above) >= _DEEPEST or any(value is each for each in above):
            return "..."
        return _nest_text(list(value.items()) if isinstance(value, Mapping) else value, (*above, value))
    part = with_state(value)
    return _hash(repr(_digests(part.state_dict())).encode()) if has_state(part) else None


def _nest_text(values: Any, above: tuple[Any, ...]) -> str | None:
    if len(values) > _MOST_ENTRIES:
        return f"{len(values)} entries"
    texts = [each if isinstance(each, str) else _state_text(each, above) for each in values]
    if None in texts:
        return None
    text = ", ".join(map(str, sorted(map(str, texts)) if isinstance(values, set) else texts))
    return f"[{text}]" if len(text) <= _LONGEST_TEXT else f"{len(texts)} entries {_hash(text.encode())}"


# ------------------------------------------------------------------------------------------- digests


def _rows(batch: Any) -> Iterator[tuple[str, Any]]:
    """Yield a digest for every entry of a batch; tensors with few enough rows get one a row, which names the sample."""
    for path, leaf in leaves(batch):
        has_rows = isinstance(leaf, torch.Tensor) and leaf.ndim > 0 and len(leaf) <= _MAX_SAMPLES
        yield path, [_digest(row) for row in leaf] if has_rows else _digest(leaf)


def _digests(nest: Any) -> dict[str, str]:
    return {path: _digest(leaf) for path, leaf in leaves(nest)}


def _digest(leaf: Any) -> str:
    """Return a short text for a value: numbers as they are, a hash of everything else."""
    if isinstance(leaf, torch.Tensor | np.ndarray):
        return _hash(b"" if isinstance(leaf, torch.Tensor) and is_lazy(leaf) else as_bytes(leaf))
    if isinstance(leaf, set | frozenset):
        return _hash(repr(sorted(map(repr, leaf))).encode())
    if isinstance(leaf, int | float | complex | None):
        return repr(leaf)
    return _hash(re.sub(r" at 0x[0-9a-f]+", "", repr(leaf)).encode())


def _hash(data: bytes) -> str:
    return "#" + hashlib.blake2b(data, digest_size=8).hexdigest()
