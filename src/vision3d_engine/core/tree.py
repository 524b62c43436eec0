"""Nests, as loaders yield them, steps return them and files hold them: one walk opens, maps and names all of them.

Opened are dicts, lists, tuples and deques of any class, named tuples, dataclasses and ``SimpleNamespace``. The rest are
leaves.
"""

import copy
import dataclasses
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from functools import lru_cache
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch

_LONGEST_REPR = 200


class _Kind(NamedTuple):
    """How a walk opens containers of one kind, and puts them together again.

    Attributes:
        entries: returns what a container holds, by key, index or attribute.
        rebuilt: returns a container like another one that holds something else, leaving that one alone.
        plain: returns what stands for it in plain data.
        step: how python writes the way to an entry.
    """

    entries: Callable[[Any], dict[Any, Any]]
    rebuilt: Callable[[Any, dict[Any, Any]], Any]
    plain: Callable[[Any, dict[Any, Any]], Any]
    step: str = "[{!r}]"


def _same_mapping(original: Mapping, held: dict[Any, Any]) -> Mapping:
    """Put entries into a copy of other kinds of dict, as constructors may take anything; read-only ones are dicts."""
    if type(original) is dict or not isinstance(original, MutableMapping):
        return held
    twin = _copied(original)
    for key, value in held.items():
        twin[key] = value
    return twin


def _copied(mapping: MutableMapping) -> MutableMapping:
    """Copy a mapping, with the dict inside that one of a script's own may keep its entries in."""
    twin = copy.copy(mapping)
    if not isinstance(mapping, dict):
        attributes = getattr(twin, "__dict__", {})
        attributes.update({name: copy.copy(value) for name, value in attributes.items() if isinstance(value, dict)})
    return twin


def _same_tuple(original: tuple, held: dict[Any, Any]) -> tuple:
    kind, values = type(original), tuple(held.values())
    if kind is tuple or hasattr(kind, "n_sequence_fields"):  # torch.return_types and others of C have this constructor
        return kind(values)
    twin = tuple.__new__(kind, values)  # a class of a script's own may take other arguments
    getattr(twin, "__dict__", {}).update(getattr(original, "__dict__", {}))
    return twin


def _same_list(original: Any, held: dict[Any, Any]) -> Any:
    if type(original) is list:
        return list(held.values())
    twin = copy.copy(original)  # a deque keeps its maxlen, a list of a script's own its attributes
    twin.clear()
    twin.extend(held.values())
    return twin


def _attributes(nest: Any) -> dict[str, Any]:
    """Return the fields of a dataclass, whether or not its constructor sets them, and all other attributes."""
    declared = [field.name for field in dataclasses.fields(nest)] if dataclasses.is_dataclass(nest) else []
    names = dict.fromkeys([*declared, *getattr(nest, "__dict__", ())])
    return {name: getattr(nest, name) for name in names if hasattr(nest, name)}


def _same_object(original: Any, held: dict[str, Any]) -> Any:
    twin = copy.copy(original)
    for name, value in held.items():
        object.__setattr__(twin, name, value)  # frozen ones too
    return twin


def _numbered(nest: Any) -> dict[int, Any]:
    return dict(enumerate(nest))


def _plain_mapping(original: Mapping, held: dict[Any, Any]) -> dict[Any, Any]:
    return OrderedDict(held) if type(original) is OrderedDict else held  # torch loads both as data


_MAPPING = _Kind(lambda nest: dict(nest.items()), _same_mapping, _plain_mapping)
_TUPLE = _Kind(_numbered, _same_tuple, lambda _, held: tuple(held.values()))
_LIST = _Kind(_numbered, _same_list, lambda _, held: list(held.values()))
_DEQUE = _Kind(_numbered, _same_list, _same_list)
_OBJECT = _Kind(_attributes, _same_object, _same_object, ".{}")


@lru_cache(maxsize=1024)
def _kind_of(kind: type) -> _Kind | None:
    """Return how containers of a class are opened; None for leaves. Every walk asks here."""
    if issubclass(kind, Mapping):
        return _MAPPING
    if issubclass(kind, tuple):
        return None if kind is torch.Size else _TUPLE
    if issubclass(kind, list | deque):
        return _LIST if issubclass(kind, list) else _DEQUE
    is_object = issubclass(kind, SimpleNamespace) or dataclasses.is_dataclass(kind)
    return _OBJECT if is_object and not issubclass(kind, torch.Tensor) else None


@lru_cache(maxsize=1024)
def _rebuilt_kind_of(kind: type) -> _Kind | None:
    """Return how containers of a class are rebuilt; None where objects move themselves, since they know how."""
    return None if callable(getattr(kind, "to", None)) else _kind_of(kind)


def is_container(value: Any) -> bool:
    """Tell whether a value is a dict, a list or a tuple of any class, for which plain data has a form."""
    return _kind_of(type(value)) in (_MAPPING, _TUPLE, _LIST)


def map_leaves(function: Callable[[Any], Any], nest: Any) -> Any:
    """Return the same nest with ``function`` applied to every leaf; the containers are new, their types are kept.

    Containers that move themselves by a method ``to`` (torch's ``PackedSequence``, tensordict's ``TensorDict``) are
    leaves here.
    """
    if type(nest) is dict:  # these two three times as fast as below, since every batch comes this way
        return {key: map_leaves(function, value) for key, value in nest.items()}
    if type(nest) is list:
        return [map_leaves(function, value) for value in nest]
    kind = _rebuilt_kind_of(type(nest))
    if kind is None:
        return function(nest)
    return kind.rebuilt(nest, {key: map_leaves(function, value) for key, value in kind.entries(nest).items()})


def map_with_paths(function: Callable[[str, Any], Any], nest: Any, path: str = "") -> Any:
    """Return a nest with ``function(path, part)`` in place of all its parts, and its dicts, lists and tuples plain.

    An ``OrderedDict`` is plain too.

    A container comes before what it holds; what the function returns for it is opened in its place. A path is written
    as python does: ``['model']['weight']``, ``['lengths'][0]``, ``['pair'].left`` in objects.
    """
    part = function(path, nest)
    kind = _kind_of(type(part))
    if kind is None:
        return part
    held = kind.entries(part).items()
    return kind.plain(part, {key: map_with_paths(function, value, path + kind.step.format(key)) for key, value in held})


def leaves(nest: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every leaf of a nest with its path, written as in `map_with_paths`."""
    found = entries(nest)
    if found is None:
        yield path, nest
        return
    for key, value in found.items():
        yield from leaves(value, path + step(nest, key))


def entries(nest: Any) -> dict[Any, Any] | None:
    """Return what a container holds, by key, index or attribute; None for a leaf."""
    kind = _kind_of(type(nest))
    return None if kind is None else kind.entries(nest)


def step(nest: Any, key: Any) -> str:
    """Return the way from a container to one of its `entries`, as python writes it."""
    kind = _kind_of(type(nest))
    return f"[{key!r}]" if kind is None else kind.step.format(key)


def rebuilt(nest: Any, held: dict[Any, Any]) -> Any:
    """Return a container like another one, with other `entries`."""
    kind = _kind_of(type(nest))
    return nest if kind is None else kind.rebuilt(nest, held)


def moves_itself(value: Any) -> bool:
    """Tell whether an object has a method ``to``, like PyG's ``Data``."""
    return callable(getattr(value, "to", None)) and not isinstance(value, type)


def move(leaf: Any, device: torch.device | str, *, non_blocking: bool = True) -> Any:
    """Move a tensor, or an object with a method ``to``, which may return what has moved or move itself."""
    if isinstance(leaf, torch.Tensor):
        return leaf.to(device, non_blocking=non_blocking)
    moved = leaf.to(device) if moves_itself(leaf) else None
    return leaf if moved is None else moved


def to_device(nest: Any, device: torch.device | str, *, non_blocking: bool = True) -> Any:
    """Move every tensor of a nest, and every object with a method ``to`` (PyG's ``Data``), to a device.

    The host does not wait: copies from pinned memory are queued, as ``torch.Tensor.to`` describes.
    """
    return map_leaves(lambda leaf: move(leaf, device, non_blocking=non_blocking), nest)


def to_cpu(nest: Any) -> Any:
    """Copy every tensor of a nest, and every object with a method ``to``, to the host; waits for the device."""
    return to_device(nest, "cpu", non_blocking=False)


def tensors_elsewhere(nest: Any, device: torch.device) -> list[str]:
    """Return the paths of tensors on another kind of device, also in objects that no walk opens (``['pairs'].index``).

    What an object with a method ``to`` leaves where it was is its own choice.
    """
    found: list[str] = []
    seen: set[int] = set()

    def look(path: str, part: Any) -> Any:
        if isinstance(part, torch.Tensor):
            found.extend([path] if part.device.type != device.type else [])
            return None
        if moves_itself(part) or id(part) in seen:
            return None
        seen.add(id(part))
        return _opened(part)

    map_with_paths(look, nest)
    return found


def _opened(part: Any) -> Any:
    """Return an object that no walk opens as a namespace of its tensors and nests."""
    if _kind_of(type(part)) is not None or isinstance(part, type) or not hasattr(part, "__dict__"):
        return part
    nests = {
        name: value for name, value in vars(part).items() if isinstance(value, torch.Tensor) or is_container(value)
    }
    return SimpleNamespace(**nests)


def to_array(nest: Any) -> Any:
    """Turn tensors into numbers (one element) or numpy arrays (more); waits for the device."""

    def release(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        return leaf.item() if leaf.numel() == 1 else leaf.detach().cpu().numpy()

    return map_leaves(release, nest)


def host_array(value: Any) -> np.ndarray:
    """Return a tensor of any device and type, an array, or nested numbers as an array; waits for the device.

    Types that numpy does not have (bfloat16) become float32. Memory is shared where that is possible.
    """
    if not isinstance(value, torch.Tensor):
        return np.asarray(value)
    value = value.detach().cpu()
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy()


def to_tensor(nest: Any) -> Any:
    """Turn numpy arrays of numbers into tensors that share their memory; others, of text, are kept."""

    def convert(leaf: Any) -> Any:
        return torch.from_numpy(leaf) if isinstance(leaf, np.ndarray) and leaf.dtype.kind in "biufc" else leaf

    return map_leaves(convert, nest)


def describe(value: Any) -> str:
    """Return a short description of any value for an error message: ``tensor of shape (2, 3)``, ``list of 4``."""
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape}"
    if isinstance(value, Mapping):
        return f"a dict with the keys {', '.join(map(str, value)) or 'none'}"
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    text = repr(value)
    if len(text) > _LONGEST_REPR or "\n" in text or "object at 0x" in text:
        return f"an object of {type(value).__module__}.{type(value).__qualname__}"
    return "None" if value is None else f"{text} ({type(value).__name__})"
