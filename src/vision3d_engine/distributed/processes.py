"""Functions for scripts: who this process is among all, and means over them, with and without a process group."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
import torch.distributed as dist

from vision3d_engine.core.tree import map_leaves
from vision3d_engine.distributed.launch.device import choose_device
from vision3d_engine.distributed.launch.process_group import find_local_rank, is_distributed
from vision3d_engine.distributed.world import join_world

setup_distributed = join_world


def current_device() -> torch.device:
    """Return this process's accelerator, or the CPU when the machine has none."""
    return choose_device(None, find_local_rank())


def get_world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if is_distributed() else 1


def get_rank() -> int:
    """Return the number of this process among all."""
    return dist.get_rank() if is_distributed() else 0


def get_local_rank() -> int:
    """Return the number of this process on its machine, which is the index of its device."""
    return find_local_rank() or 0 if is_distributed() else 0


def is_master() -> bool:
    """Tell whether this is the process that writes files."""
    return get_rank() == 0


def master_only(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make a function do nothing, and return None, on all processes but the main one."""

    @wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs) if is_master() else None

    return wrapper


def all_reduce_tensor(tensor: torch.Tensor, world_size: int | None = None) -> torch.Tensor:
    """Return the mean of a tensor over all processes."""
    if not is_distributed():
        return tensor
    total = tensor.clone()
    dist.all_reduce(total)
    return total / (world_size or get_world_size())


def all_reduce_tensors(nest: Any, world_size: int | None = None) -> Any:
    """Return a nest with every tensor replaced by its mean over all processes; one all-reduce a tensor."""
    return map_leaves(lambda x: all_reduce_tensor(x, world_size) if isinstance(x, torch.Tensor) else x, nest)
