"""Gradients of intermediate tensors in the unit of the loss that a step returns, whatever it is multiplied by."""

from collections.abc import Callable
from typing import Any

import torch

from vision3d_engine.endpoints.context_manager import ContextManager


class LossUnit:
    """Divides the gradients of endpoints by that of the loss itself.

    That is what the loss was multiplied by before it was walked back: its weight in the window, the scale of fp16, what
    a `backward` of the script's own does. Nothing is read from the device. Where a loss has no weight, gradients stay
    the zeros that they are.

    Args:
        endpoints: the store.
    """

    def __init__(self, endpoints: ContextManager) -> None:
        self._endpoints = endpoints
        self._loss: torch.Tensor | None = None

    def around(self, step: Callable[..., tuple[Any, ...]]) -> Callable[..., tuple[Any, ...]]:
        """Return a step whose loss, which comes first, keeps its gradient where there are endpoints."""

        def run(*args: Any) -> tuple[Any, ...]:
            self._loss = None
            returned = step(*args)
            if self._endpoints.is_used and isinstance(returned[0], torch.Tensor) and returned[0].requires_grad:
                self._loss = returned[0]
                self._loss.retain_grad()
            return returned

        return run

    def after_backward(self, *_: Any) -> None:
        """Bring the gradients of the step back to the unit of its loss."""
        loss, self._loss = self._loss, None
        if loss is None or not loss.retains_grad or loss.grad is None:
            return
        factor, loss.grad = loss.grad.to(_exact(loss.grad)).reshape(()), None
        factor = factor.masked_fill(factor == 0, 1)
        for endpoint in self._endpoints.retained():
            if endpoint is not loss and endpoint.grad is not None:
                endpoint.grad = (endpoint.grad.to(_exact(endpoint.grad)) / factor).to(endpoint.grad)


def _exact(tensor: torch.Tensor) -> torch.dtype:
    """Return the type in which a tensor is divided: the scale of fp16 is too large for its own numbers."""
    return torch.promote_types(tensor.dtype, torch.float32)
