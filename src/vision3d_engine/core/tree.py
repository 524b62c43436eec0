"""Nests of dicts, lists, tuples and named tuples, as loaders yield them and steps return them."""

import copy
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import numpy as np
import torch


def map_leaves(function: Callable[[Any], Any], nest: Any) -> Any:
    """Return the same nest with ``function`` applied to every leaf; the containers are new, their types are kept."""
    if isinstance(nest, MutableMapping):
        return _like_mapping(nest, {key: map_leaves(function, value) for key, value in nest.items()})
    if isinstance(nest, tuple) and hasattr(nest, "_fields"):
        return type(nest)(*(map_leaves(function, value) for value in nest))
    if isinstance(nest, list | tuple):
        return type(nest)(map_leaves(function, value) for value in nest)
    return function(nest)


def _like_mapping(original: MutableMapping, values: dict) -> MutableMapping:
    """Put values into a shallow copy for other kinds of dict, whose constructors may take anything."""
    if type(original) is dict:
        return values
    twin = copy.copy(original)
    for key, value in values.items():
        twin[key] = value
    return twin


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
