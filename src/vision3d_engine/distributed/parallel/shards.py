"""Tensors that are spread over processes, and their places in a state."""

import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch


def is_sharded(tensor: Any) -> bool:
    """Tell whether a tensor is spread over processes; costs nothing as long as none is (the class loads slowly)."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local_part(tensor: torch.Tensor) -> torch.Tensor:
    """Return what this process holds of a tensor, sharing its memory; all of it when it is not spread."""
    return tensor.detach().to_local() if is_sharded(tensor) else tensor  # pyright: ignore[reportAttributeAccessIssue]


def like(value: Any, target: Any) -> Any:
    """Return a whole tensor spread as another one is, without an exchange; all else as it is."""
    if not is_sharded(target) or is_sharded(value) or not isinstance(value, torch.Tensor):
        return value
    from torch.distributed.tensor import distribute_tensor

    value = value.to(target.device)
    return distribute_tensor(value, target.device_mesh, target.placements, src_data_rank=None)


class Shard(NamedTuple):
    """One process's part of a tensor.

    Attributes:
        part: the part.
        shape: of the whole tensor.
        stride: of the whole tensor.
        dim: the dimension along which it is spread; None when every process holds all of it.
    """

    part: torch.Tensor
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dim: int | None


def take_out(value: Any, path: str = "") -> tuple[Any, dict[str, Shard]]:
    """Return a state with a description (a tensor on ``meta``) in place of every spread tensor, and these by key path.

    To be called by all processes.
    """
    if is_sharded(value):
        return torch.empty(value.shape, dtype=value.dtype, device="meta"), {path: _shard_of(value)}
    if isinstance(value, Mapping):
        pairs = {key: take_out(item, f"{path}[{key!r}]") for key, item in value.items()}
        return {key: kept for key, (kept, _) in pairs.items()}, _merged(taken for _, taken in pairs.values())
    if isinstance(value, list | tuple):
        found = [take_out(item, f"{path}[{number}]") for number, item in enumerate(value)]
        return type(value)([kept for kept, _ in found]), _merged(taken for _, taken in found)
    return value, {}


def put_in(value: Any, tensors: Mapping[str, torch.Tensor], path: str = "") -> Any:
    """Return a state with the tensors at their key paths."""
    if path in tensors:
        return tensors[path]
    if isinstance(value, dict):
        return {key: put_in(item, tensors, f"{path}[{key!r}]") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)([put_in(item, tensors, f"{path}[{number}]") for number, item in enumerate(value)])
    return value


def descriptions(value: Any, path: str = "") -> dict[str, torch.Tensor]:
    """Return the descriptions that `take_out` has left in a state, by key path."""
    if isinstance(value, torch.Tensor):
        return {path: value} if value.is_meta else {}
    if isinstance(value, dict):
        return _merged(descriptions(item, f"{path}[{key!r}]") for key, item in value.items())
    if isinstance(value, list | tuple):
        return _merged(descriptions(item, f"{path}[{number}]") for number, item in enumerate(value))
    return {}


def _merged(parts: Any) -> dict[str, Any]:
    return {path: item for part in parts for path, item in part.items()}


def _shard_of(tensor: Any) -> Shard:
    from torch.distributed.tensor import Replicate

    (placement,) = tensor.placements
    if placement.is_partial():
        tensor = tensor.redistribute(placements=[Replicate()])
        (placement,) = tensor.placements
    dim = placement.dim if placement.is_shard() else None
    return Shard(local_part(tensor), tuple(tensor.shape), tensor.stride(), dim)
