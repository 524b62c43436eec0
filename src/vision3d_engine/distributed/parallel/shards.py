"""Tensors that are spread over processes, and their places in a state."""

import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from vision3d_engine.core.tree import leaves, map_with_paths


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


def take_out(state: Any) -> tuple[Any, dict[str, Shard]]:
    """Return a state with a description (a tensor on ``meta``) in place of every spread tensor, and these by key path.

    To be called by all processes.
    """
    shards: dict[str, Shard] = {}

    def described(path: str, part: Any) -> Any:
        if not is_sharded(part):
            return part
        shards[path] = _shard_of(part)
        return torch.empty(part.shape, dtype=part.dtype, device="meta")

    return map_with_paths(described, state), shards


def put_in(state: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """Return a state with the tensors at their key paths."""
    return map_with_paths(tensors.get, state)


def descriptions(state: Any) -> dict[str, torch.Tensor]:
    """Return the descriptions that `take_out` has left in a state, by key path."""
    return {path: leaf for path, leaf in leaves(state) if isinstance(leaf, torch.Tensor) and leaf.is_meta}


def _shard_of(tensor: Any) -> Shard:
    from torch.distributed.tensor import Replicate

    (placement,) = tensor.placements
    if placement.is_partial():
        tensor = tensor.redistribute(placements=[Replicate()])
        (placement,) = tensor.placements
    dim = placement.dim if placement.is_shard() else None
    return Shard(local_part(tensor), tuple(tensor.shape), tensor.stride(), dim)
