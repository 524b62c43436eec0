"""Limits on the gradients of an update, by torch's own functions; nothing is read from the device."""

from collections.abc import Iterable
from typing import Any

import torch
from torch.nn.utils import clip_grad_value_, clip_grads_with_norm_, get_total_norm

from vision3d_engine.distributed.parallel.shards import is_sharded


class Clipping:
    """Clips the gradients of one optimizer, once an update.

    Args:
        max_norm: the 2-norm over all gradients is brought down to this (Pascanu et al. 2013); None leaves it.
        max_value: afterwards each number is brought into ``[-max_value, max_value]``; None leaves it.
    """

    def __init__(self, max_norm: float | None, max_value: float | None) -> None:
        self._max_norm, self._max_value = max_norm, max_value

    def __call__(self, parameters: Iterable[torch.Tensor], norm: torch.Tensor | None = None) -> torch.Tensor | None:
        """Clip the gradients of parameters; return their norm from before, as one number on the device.

        Args:
            parameters: those without a gradient are passed over.
            norm: the norm of the gradients, where it is known already.
        """
        trained = [parameter for parameter in parameters if parameter.grad is not None]
        if self._max_norm is not None and trained:
            norm = gradient_norm(trained) if norm is None else norm
            clip_grads_with_norm_(trained, self._max_norm, norm)
        if self._max_value is not None:
            clip_grad_value_(trained, self._max_value)
        return norm


def gradient_norm(parameters: Iterable[torch.Tensor]) -> torch.Tensor:
    """Return the 2-norm over all gradients, over all processes where they are spread."""
    norm: Any = get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    return norm.full_tensor() if is_sharded(norm) else norm
