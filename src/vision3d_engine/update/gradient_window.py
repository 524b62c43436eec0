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
        self._own: float = 0
        self._expected: float = 0

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
        self._own += weight
        self._expected += mean_weight
        return loss if weight == 1 else loss * weight

    def left_out(self, mean_weight: float) -> torch.Tensor:
        """Return what this process joins the others with in a micro-batch that it leaves out.

        Args:
            mean_weight: what `weighted` would be told.
        """
        return self.weighted(self._parallel.zero_loss(), 0, mean_weight)

    def take_back(self) -> None:
        """Forget the weight of the last loss, whose backward pass has failed."""
        if self._weights is not None:
            self._weights.take_back()
        self._own -= 1

    def close(self) -> bool:
        """Exchange and divide the gradients, and begin another window; tell whether there is anything to learn.

        There is not where all weights are zero, by numbers of the host: gradients are zeros then, also for hooks. Where
        they are zero on the device nobody knows, and gradients become exact zeros.
        """
        parallel, self.is_open = self._parallel, False
        own, expected, self._own, self._expected = self._own, self._expected, 0, 0
        own = own if self._weights is None else 1  # what travels with the gradients is not asked for then
        weight = parallel.exchange(self._parameters, own, expected) if self._is_exchanged else own
        if self._checks_gradients:
            parallel.check_gradients()
        if self._weights is not None:
            weight = self._weights.close()
        if isinstance(weight, torch.Tensor):
            self._divide_on_device(weight)
        elif weight == 0:
            self._clear_to_zeros()
            return False
        elif self._is_mean and weight != 1:
            _divide_all(self._gradients(), weight)
        return True

    def _divide_on_device(self, weight: torch.Tensor) -> None:
        """Divide by a weight that nobody reads; where it is zero, gradients become zeros, also those that are NaN.

        Equal weights that are here, and not on the host, are larger than 0.
        """
        gradients = self._gradients()
        if self._weights is None:
            _divide_all(gradients if self._is_mean else [], weight)
            return
        is_void = weight == 0
        if self._is_mean:
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
    if gradients:
        torch._foreach_div_(gradients, weight)  # pyright: ignore  like torch's clip_grad_norm_
