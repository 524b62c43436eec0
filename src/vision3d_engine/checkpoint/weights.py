"""Which part of a file is the weights, whoever has written it, and under which names they would fit."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch

from vision3d_engine.checkpoint.stubs import is_stub, kind_of
from vision3d_engine.core.errors import CheckpointError, did_you_mean, shortened
from vision3d_engine.core.tree import leaves

Name = TypeVar("Name", str, tuple[str, ...])

# How torch ends the names of what `get_extra_state` has returned.
_EXTRA_STATE = "_extra_state"


def weights_of(state: Mapping[str, Any], source: str) -> dict[str, torch.Tensor]:
    """Return the weights of a loaded file; see `nest_of`."""
    found = loadable_of(nest_of(state, source), source)
    return {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}


def under_names(values: Mapping[Name, Any], rename: Callable[[Name], str], source: str) -> dict[str, Any]:
    """Return values under their new names.

    Raises:
        CheckpointError: when two of them get the same one, naming both.
    """
    old: dict[str, Name] = {}
    for name in values:
        if (other := old.setdefault(rename(name), name)) != name:
            message = f"'{other}' and '{name}' of '{source}' both become '{rename(name)}', so that one would be lost. "
            raise CheckpointError(message + "Leave one out by exclude= or another rename=, or save the file without it")
    return {new: values[name] for new, name in old.items()}


def nest_of(state: Mapping[str, Any], source: str, key: str | None = None) -> Mapping[str, Any]:
    """Return the nest of a loaded file that holds the weights.

    Of a checkpoint of this engine it is ``model``. Of other files it is the only nest of tensors under names, under any
    key and at any depth; states of optimizers, and nests without any array of floating-point numbers (states of random
    generators, metrics) do not count beside it.

    Args:
        state: the loaded file.
        source: its name, for messages.
        key: which nest to take, as the message about several names them; None takes the only one.

    Raises:
        CheckpointError: when there is none, or several and no key, or none of this key.
    """
    nests = under_names(_nests(state), ".".join, source)
    if isinstance(state.get("model"), Mapping) and isinstance(state.get("metadata"), Mapping):
        nests["model"] = state["model"]
        key = "model" if key is None else key
    if key is not None and key in nests:
        return nests[key]
    likely = {name: nest for name, nest in nests.items() if any(map(_is_array, nest.values()))} or nests
    if key is None and len(likely) == 1:
        return next(iter(likely.values()))
    raise CheckpointError(_not_one(state, source, nests if key is not None else likely, key))


def _nests(
    state: Mapping[Any, Any], path: tuple[str, ...] = (), above: tuple[Mapping[Any, Any], ...] = ()
) -> dict[tuple[str, ...], Mapping[str, Any]]:
    """Return the innermost mappings that hold tensors under names, by the way to them."""
    if {"state", "param_groups"} <= state.keys() or any(state is each for each in above):
        return {}  # an optimizer's, with all below; or a mapping that holds itself
    inner: dict[tuple[str, ...], Mapping[str, Any]] = {}
    for key, value in state.items():
        if isinstance(key, str) and isinstance(value, Mapping) and not key.endswith(_EXTRA_STATE):
            inner |= _nests(value, (*path, key), (*above, state))
    has_names = all(isinstance(key, str) for key in state)
    has_tensors = any(isinstance(value, torch.Tensor) for value in state.values())
    return inner or ({path: state} if has_names and has_tensors else {})


def _is_array(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim > 0 and (value.is_floating_point() or value.is_complex())


def _not_one(state: Mapping[Any, Any], source: str, nests: Mapping[str, Mapping[str, Any]], key: str | None) -> str:
    """Return the message about a file that has no weights, several, or none under the key."""
    if not nests:
        keys = shortened([_entry(*item) for item in state.items()])
        return f"'{source}' holds no weights (its keys: {keys}); expected tensors under names, as of model.state_dict()"
    counts = [f"'{name}' ({sum(map(torch.is_tensor, nest.values()))} tensors)" for name, nest in nests.items()]
    if key is not None:
        return f"'{source}' has no weights under '{key}', only under {shortened(counts)}{did_you_mean(key, nests)}"
    example = f"load_weights(path, key='{next(iter(nests))}')"
    return f"'{source}' holds several nests of tensors: {shortened(counts)}. Choose one by its key: {example}"


def _entry(key: Any, value: Any) -> str:
    return f"{key}: {kind_of(value)}" if is_stub(value) else str(key)


def loadable_of(nest: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return the tensors of a nest, and extra state of modules; other numbers and text among them are left out.

    Raises:
        CheckpointError: when something among them could not be loaded.
    """
    inner = ((name, leaf) for name, value in nest.items() for leaf in _leaves_of(name, value))
    if stubs := [f"'{name}' is {kind_of(leaf)}" for name, leaf in inner if is_stub(leaf)]:
        message = f"among the weights of '{source}', {shortened(stubs, 3)}. Save tensors alone where its package is "
        raise CheckpointError(message + "installed, or leave it out: load_weights(path, exclude=...)")
    return {name: value for name, value in nest.items() if _is_loadable(name, value)}


def _is_loadable(name: str, value: Any) -> bool:
    return isinstance(value, torch.Tensor) or name.endswith(_EXTRA_STATE)


def _leaves_of(name: str, value: Any) -> Iterator[Any]:
    """Yield a value, or what an extra state holds."""
    yield from (leaf for _, leaf in leaves(value)) if name.endswith(_EXTRA_STATE) else (value,)


def renaming_hint(unexpected: Mapping[str, str], missing: Mapping[str, str]) -> list[str]:
    """Return which ``rename=`` makes most names of a file fit, as one line of a report; none when no two would.

    Args:
        unexpected: shapes by names of the file that the model lacks.
        missing: shapes by names of the model that the file lacks.
    """
    heads = defaultdict(list)
    for name, shape in missing.items():
        for head, tail in _cuts(name):
            heads[tail, shape].append(head)
    votes: Counter[tuple[str, str]] = Counter()
    for name, shape in unexpected.items():
        old, tail = next(((head, tail) for head, tail in _cuts(name) if (tail, shape) in heads), ("", ""))
        votes.update((old, new) for new in heads.get((tail, shape), ()))
    (old, new), count = max(votes.items(), key=lambda item: item[1], default=(("", ""), 0))
    return [f"with load_weights(path, rename={ {old: new} }) {count} more names fit"] if count > 1 else []


def _cuts(name: str) -> Iterator[tuple[str, str]]:
    """Yield a name cut in two before each of its parts: ``("", "a.b")``, ``("a.", "b")``."""
    parts = name.split(".")
    for at in range(len(parts)):
        head = "".join(f"{part}." for part in parts[:at])
        yield head, name[len(head) :]
