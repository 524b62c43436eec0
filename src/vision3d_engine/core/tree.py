"""Nests of dicts, lists, tuples and named tuples, as loaders yield them, steps return them and files hold them."""

import copy
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch


@lru_cache(maxsize=1024)
def _plain_kind(kind: type) -> type | None:
    """Return what stands for containers of a class: dict, list or tuple; None for a leaf. Every walk asks here."""
    if issubclass(kind, Mapping):
        return dict
    if issubclass(kind, tuple) and kind is not torch.Size:
        return tuple
    return list if issubclass(kind, list) else None


def is_container(value: Any) -> bool:
    """Tell whether a walk opens a value; all else is a leaf."""
    return _plain_kind(type(value)) is not None


def map_leaves(function: Callable[[Any], Any], nest: Any) -> Any:
    """Return the same nest with ``function`` applied to every leaf; the containers are new, their types are kept."""
    kind = _plain_kind(type(nest))
    if kind is None:
        return function(nest)
    if kind is dict:
        return _same_mapping(nest, {key: map_leaves(function, value) for key, value in nest.items()})
    values = [map_leaves(function, value) for value in nest]
    return type(nest)(*values) if hasattr(nest, "_fields") else type(nest)(values)


def _same_mapping(original: Mapping, entries: dict[Any, Any]) -> Mapping:
    """Put entries into a shallow copy of other kinds of dict, whose constructors may take anything."""
    if type(original) is dict or not isinstance(original, MutableMapping):
        return entries
    twin = copy.copy(original)
    for key, value in entries.items():
        twin[key] = value
    return twin


def map_with_paths(function: Callable[[str, Any], Any], nest: Any, path: str = "") -> Any:
    """Return a nest as plain dicts, lists and tuples, with ``function(path, part)`` in place of all its parts.

    A container comes before what it holds; what the function returns for it is opened in its place. A path is written
    as python does: ``['model']['weight']``, ``['lengths'][0]``.
    """
    part = function(path, nest)
    kind, found = _plain_kind(type(part)), entries(part)
    if kind is None or found is None:
        return part
    mapped = {key: map_with_paths(function, value, f"{path}[{key!r}]") for key, value in found.items()}
    return mapped if kind is dict else kind(mapped.values())


def leaves(nest: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every leaf of a nest with its path, written as in `map_with_paths`."""
    found = entries(nest)
    if found is None:
        yield path, nest
        return
    for key, value in found.items():
        yield from leaves(value, f"{path}[{key!r}]")


def entries(nest: Any) -> dict[Any, Any] | None:
    """Return what a container holds, by key or index; None for a leaf."""
    kind = _plain_kind(type(nest))
    if kind is None:
        return None
    return dict(nest.items()) if kind is dict else dict(enumerate(nest))


def to_device(nest: Any, device: torch.device | str, *, non_blocking: bool = True) -> Any:
    """Move every tensor of a nest, and every object with a tensor-like ``to`` (PyG's ``Data``), to a device.

    The host does not wait: copies from pinned memory are queued, as ``torch.Tensor.to`` describes.
    """

    def move(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor):
            return leaf.to(device, non_blocking=non_blocking)
        if callable(getattr(leaf, "to", None)) and not isinstance(leaf, type):
            return leaf.to(device)
        return leaf

    return map_leaves(move, nest)


def to_cpu(nest: Any) -> Any:
    """Copy every tensor of a nest to the host; waits for the device."""
    return map_leaves(lambda leaf: leaf.cpu() if isinstance(leaf, torch.Tensor) else leaf, nest)


def to_array(nest: Any) -> Any:
    """Turn tensors into numbers (one element) or numpy arrays (more); waits for the device."""

    def release(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        return leaf.item() if leaf.numel() == 1 else leaf.detach().cpu().numpy()

    return map_leaves(release, nest)


def to_tensor(nest: Any) -> Any:
    """Turn numpy arrays into tensors that share their memory."""
    return map_leaves(lambda leaf: torch.from_numpy(leaf) if isinstance(leaf, np.ndarray) else leaf, nest)


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
    return "None" if value is None else f"{value!r} ({type(value).__name__})"
