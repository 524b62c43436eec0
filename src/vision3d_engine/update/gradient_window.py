"""The gradients that a window of micro-batches adds up, and what they are divided by."""

from collections.abc import Callable, Iterable
from typing import Any

import torch

from vision3d_engine.distributed.parallel.base import Parallel
from vision3d_engine.update.window_weight import WindowWeight


class GradientWindow:
    """Weighs the losses of a window, and makes of its gradients those of one update.

    With a mean the gradient is ``sum(w_i * g_i) / sum(w_i)`` over the micro-batches (and over all processes): that of
    one big batch when the loss is a mean over ``w_i`` equal things. An incomplete window is divided by the weight that
    it really has. Without, the gradients are added up as they are.

    Args:
        parameters: returns those whose gradients are meant.
        parallel: how the processes share the model and the update.
        is_mean: whether to divide.
        weights: what adds the weights up; None when every micro-batch weighs the same on every process.

    Attributes:
        is_open: whether it has a micro-batch.
    """

    def __init__(
        self,
        parameters: Callable[[], Iterable[torch.Tensor]],
        parallel: Parallel,
        *,
        is_mean: bool,
        weights: WindowWeight | None,
    ) -> None:
        self.is_open = False
        self._parameters, self._parallel = parameters, parallel
        self._is_mean, self._weights = is_mean, weights
        self._is_exchanged, self._checks_gradients = parallel.world.size > 1, parallel.checks_gradients
        self._weight: Any = 0

    @property
    def is_weighted(self) -> bool:
        """Whether its losses weigh differently."""
        return self._weights is not None

    def weighted(self, loss: torch.Tensor, weight: Any, mean_weight: float) -> torch.Tensor:
        """Return the loss of a micro-batch as it is to be walked back, and count its weight.

        Args:
            loss: one number that requires grad.
            weight: number of things that the loss is a mean over, as a number or a tensor on the device (not read).
            mean_weight: with equal weights, the mean of all processes' weights for this micro-batch: less than 1 when
                some have no batch left.
        """
        self.is_open = True
        if self._weights is not None:
            return self._weights.weighted(loss, weight)
        self._weight += mean_weight
        return loss if weight == 1 else loss * weight

    def close(self) -> bool:
        """Exchange and divide the gradients, and begin another window; tell whether there is anything to learn.

        There is not where all weights are zero, by numbers of the host: gradients are zeros then, also for hooks. Where
        they are zero on the device nobody knows, and gradients become exact zeros.
        """
        parallel, self.is_open = self._parallel, False
        if self._is_exchanged:
            parallel.exchange(self._parameters)
        if self._checks_gradients:
            parallel.check_gradients()
        weight = self._weight if self._weights is None else self._weights.close()
        self._weight = 0
        if isinstance(weight, torch.Tensor):
            self._divide_on_device(weight)
        elif weight == 0:
            self._clear_to_zeros()
            return False
        elif self._is_mean and weight != 1 and (gradients := self._gradients()):
            _divide_all(gradients, weight)
        return True

    def _divide_on_device(self, weight: torch.Tensor) -> None:
        """Divide by a weight that nobody reads; where it is zero, gradients become zeros, also those that are NaN."""
        gradients, is_void = self._gradients(), weight == 0
        if self._is_mean and gradients:
            _divide_all(gradients, weight.masked_fill(is_void, 1))
        for gradient in gradients:
            gradient.masked_fill_(is_void, 0)

    def _clear_to_zeros(self) -> None:
        """Let hooks see gradients of zeros, also where nothing was walked back; no step follows."""
        for parameter in self._parameters():
            if parameter.grad is not None:
                parameter.grad.zero_()
            elif parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)

    def _gradients(self) -> list[torch.Tensor]:
        """Return what this process holds of the gradients."""
        return self._parallel.local_parts(each.grad for each in self._parameters() if each.grad is not None)


def _divide_all(gradients: list[torch.Tensor], weight: Any) -> None:
    torch._foreach_div_(gradients, weight)  # pyright: ignore  like torch's clip_grad_norm_
