"""A copy of a state on the host, taken at one moment, so that training may go on while it is written."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch

from vision3d_engine.checkpoint.files import plain_state
from vision3d_engine.core.tree import map_leaves


class Snapshot:
    """A state whose tensors are copies on the host; ``with`` gives it out, and its memory back at the end.

    Args:
        state: plain data.
        buffers: memory of earlier snapshots that may be used again.
    """

    def __init__(self, state: Any, buffers: "Buffers") -> None:
        self._buffers = buffers
        self._copies: dict[tuple, torch.Tensor] = {}
        self._copied: Any = None
        self._state = map_leaves(self._copy, plain_state(state))

    def __enter__(self) -> Any:
        """Return the copied state, once the accelerator has finished copying; other threads may wait here."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._state

    def __exit__(self, *_: object) -> None:
        """Let later snapshots use the memory."""
        self._state = None
        self._buffers.give_back(self._copies.values())
        self._copies = {}

    def _copy(self, tensor: Any) -> Any:
        """Copy a tensor; one that appears twice is copied once, so that it is written once."""
        if not isinstance(tensor, torch.Tensor) or tensor.is_meta:  # stands for one that is spread over processes
            return tensor
        if tensor.layout is not torch.strided or tensor.is_quantized:
            return tensor.detach().cpu().clone()
        key = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, *_views(tensor))
        if key not in self._copies:
            buffer = self._copies[key] = self._buffers.take(tensor)
            buffer.copy_(tensor.detach(), non_blocking=tensor.is_cuda)  # returns a subclass if the tensor is one
            if tensor.is_cuda:
                self._copied = torch.cuda.Event()
                self._copied.record()
        return self._copies[key]


class Buffers:
    """Host memory that snapshots share one after the other; pinned for tensors of CUDA devices.

    Fresh memory costs more than the copy itself, since the operating system has to clear every page of it.
    """

    def __init__(self) -> None:
        self._free: defaultdict[tuple[Any, ...], list[torch.Tensor]] = defaultdict(list)

    def take(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a host tensor of this shape, type and layout; channels last stay last, as fused optimizers need it."""
        layout = torch.empty_like(tensor.detach().as_subclass(torch.Tensor), device="meta").stride()
        if free := self._free[tensor.shape, layout, tensor.dtype]:
            return free.pop()
        return torch.empty_strided(tensor.shape, layout, dtype=tensor.dtype, pin_memory=tensor.is_cuda)

    def give_back(self, tensors: Iterable[torch.Tensor]) -> None:
        """Take memory back."""
        for tensor in tensors:
            self._free[tensor.shape, tensor.stride(), tensor.dtype].append(tensor)


def _views(tensor: torch.Tensor) -> tuple[bool, bool]:
    """Return how a tensor reads its memory: two that share it may differ in this alone."""
    return tensor.is_conj(), tensor.is_neg()
