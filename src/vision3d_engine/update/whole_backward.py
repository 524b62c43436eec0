"""Backward passes that happen wholly or not at all."""

from collections.abc import Callable, Iterable
from typing import Any

import torch


class WholeBackward:
    """Walks a loss back; when that fails, as for lack of memory, gradients are what they were before.

    What a window has added up so far lies aside meanwhile, which costs the memory of one more gradient from the second
    micro-batch on. Sums are the same bits as without.

    Args:
        backward: walks a loss back.
        parameters: returns those that get gradients.
        take_back: called when it has failed.
    """

    def __init__(
        self,
        backward: Callable[..., None],
        parameters: Callable[[], Iterable[torch.Tensor]],
        take_back: Callable[[], None],
    ) -> None:
        self._backward, self._parameters, self._take_back = backward, parameters, take_back

    def __call__(self, loss: torch.Tensor, **options: Any) -> None:
        """Walk a loss back."""
        before = [(parameter, parameter.grad) for parameter in self._parameters()]
        for parameter, _ in before:
            parameter.grad = None
        try:
            self._backward(loss, **options)
        except BaseException:
            for parameter, gradient in before:
                parameter.grad = gradient
            self._take_back()
            raise
        for parameter, gradient in before:
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else gradient.add_(parameter.grad)
