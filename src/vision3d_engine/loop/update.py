"""One optimiser step per window of micro-batches, with the gradient of the one big batch."""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from vision3d_engine.distributed.parallel.base import Parallel

_EXCHANGING = contextlib.nullcontext()


class Update:
    """Collects the gradients of a window of micro-batches and makes them one update.

    With the reduction ``"mean"`` the gradient of a window is ``sum(w_i * g_i) / sum(w_i)`` over its micro-batches (and
    over all processes), where the weight ``w_i`` is what `backward` is told: the gradient of one big batch when the
    loss is a mean over ``w_i`` equal things. An incomplete window is divided by the weight that it really has. With
    ``"sum"`` the gradients are added up as they are.

    Args:
        model: the registered model, wrapped or not.
        optimizer: whose parameters' gradients are divided.
        step: makes the update and clears the gradients (the trainer's ``optimizer_step``).
        window_size: micro-batches of a full window.
        reduction: ``"mean"`` or ``"sum"``.
        parallel: how the processes share the model and the update.
        equal_weights: every micro-batch weighs the same on every process, so weights need not be exchanged; otherwise
            they cost one all-reduce of one number an update.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Any,
        step: Callable[[], None],
        *,
        window_size: int = 1,
        reduction: str = "mean",
        parallel: Parallel,
        equal_weights: bool = True,
    ) -> None:
        self._model = model
        self._optimizer = optimizer
        self._step = step
        self._window_size = window_size
        self._reduction = reduction
        self._world = parallel.world
        self._parallel = parallel
        self._is_first = True
        self._equal_weights = equal_weights
        self._open = 0
        self._closes = False
        self._weight: Any = 0

    @property
    def is_complete(self) -> bool:
        """Whether the micro-batch at hand ends its window."""
        return self._closes

    def micro_batch(self, is_last: bool) -> AbstractContextManager:
        """Begin a micro-batch; gradients are exchanged between processes only in the one that ends the window.

        Args:
            is_last: no micro-batch follows in this pass, so the window ends even if it is not full.
        """
        self._open += 1
        self._closes = is_last or self._open >= self._window_size
        return _EXCHANGING if self._closes else self._parallel.without_gradient_sync(self._model)

    def backward(self, loss: torch.Tensor, weight: Any = 1, mean_weight: float = 1) -> None:
        """Add the weighted gradients of one micro-batch; the last one of a window also divides by the whole weight.

        Args:
            loss: one number that requires grad.
            weight: number of things that the loss is a mean over, as a number or a tensor on the device (not read).
            mean_weight: with equal weights, the mean of all processes' weights for this micro-batch: less than 1 when
                some have no batch left.
        """
        (loss if _is_one(weight) else loss * weight).backward()
        self._weight = self._weight + (mean_weight if self._equal_weights else weight)
        if self._closes:
            self._divide()

    def step_if_due(self) -> bool:
        """Make the update if the micro-batch at hand ended its window; tell whether it did."""
        if self._closes:
            self._finish()
        return self._closes

    def close(self) -> bool:
        """Make the update of a window that the end of the batches has left open; tell whether there was one."""
        if self._open == 0:
            return False
        self._divide()
        self._finish()
        return True

    def _finish(self) -> None:
        self._step()
        self._open = 0
        self._weight = 0

    def _divide(self) -> None:
        """Divide the gradients by the weight of the window; the mean over processes needs the mean of their weights."""
        if self._is_first:
            self._is_first = False
            self._parallel.check_gradients(self._model)
        if self._reduction == "sum":
            return
        weight = self._weight
        if not self._equal_weights and self._world.size > 1:
            weight = self._world.mean(torch.as_tensor(weight, dtype=torch.float64, device=self._world.device))
        if _is_one(weight):
            return
        gradients = self._parallel.local_parts(list(self._gradients()))
        if gradients:
            torch._foreach_div_(gradients, weight)  # pyright: ignore  like torch's clip_grad_norm_

    def _gradients(self) -> Iterator[torch.Tensor]:
        """Yield the gradients of the model and of whatever else the optimizer holds, each once."""
        parameters = {id(parameter): parameter for parameter in self._model.parameters()}
        for group in getattr(self._optimizer, "param_groups", ()):
            parameters |= {id(parameter): parameter for parameter in group["params"]}
        return (parameter.grad for parameter in parameters.values() if parameter.grad is not None)


def _is_one(weight: Any) -> bool:
    """Tell whether a weight is the number 1, without reading a tensor."""
    return isinstance(weight, int | float) and weight == 1
