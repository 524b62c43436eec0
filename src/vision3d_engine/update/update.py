"""The one place where an update is made: a window of micro-batches, one gradient, one step of the optimizer."""

import contextlib
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from itertools import chain
from typing import Any

import torch
from torch import nn

from vision3d_engine.distributed.parallel.base import Parallel
from vision3d_engine.update.window_weight import WindowWeight

_EXCHANGING = contextlib.nullcontext()


class Update:
    """Collects the gradients of a window of micro-batches and makes them one update.

    With the reduction ``"mean"`` the gradient of a window is ``sum(w_i * g_i) / sum(w_i)`` over its micro-batches (and
    over all processes), where the weight ``w_i`` is what `backward` is told: the gradient of one big batch when the
    loss is a mean over ``w_i`` equal things. An incomplete window is divided by the weight that it really has. With
    ``"sum"`` the gradients are added up as they are.

    A window whose weights are all zero has nothing to teach. If they are numbers of the host, its gradients are zeros
    and no step is made, on all processes; if they are tensors on the device, which nobody reads, a step is made with
    gradients of zeros, in which an optimizer's momentum still moves.

    Args:
        model: the registered model.
        optimizer: whose parameters' gradients are divided.
        step: makes the update and clears the gradients (the trainer's ``optimizer_step``).
        window_size: micro-batches of a full window.
        reduction: ``"mean"`` or ``"sum"``.
        parallel: how the processes share the model and the update.
        weights: what adds the weights up; None when every micro-batch weighs the same on every process.

    Attributes:
        is_complete: whether the micro-batch at hand ends its window.
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
        weights: WindowWeight | None = None,
    ) -> None:
        self.is_complete = False
        self._model = model
        self._optimizer = optimizer
        self._step = self._make_step = step
        self._window_size = window_size
        self._is_mean = reduction == "mean"
        self._parallel = parallel
        self._weights = weights
        self._checks_gradients = parallel.checks_gradients
        self._collected = 0
        self._weight: Any = 0

    def micro_batch(self, is_last: bool) -> AbstractContextManager:
        """Start a micro-batch; gradients are exchanged between processes only in the one that ends the window.

        Args:
            is_last: no micro-batch follows in this pass, so the window ends even if it is not full.
        """
        self._collected += 1
        self.is_complete = is_last or self._collected >= self._window_size
        return _EXCHANGING if self.is_complete else self._parallel.without_gradient_sync()

    def backward(self, loss: torch.Tensor, weight: Any = 1, mean_weight: float = 1) -> None:
        """Add the weighted gradients of one micro-batch; the last one of a window also divides by the whole weight.

        Args:
            loss: one number that requires grad.
            weight: number of things that the loss is a mean over, as a number or a tensor on the device (not read).
            mean_weight: with equal weights, the mean of all processes' weights for this micro-batch: less than 1 when
                some have no batch left.
        """
        if self._weights is None:
            self._weight += mean_weight
            (loss if weight == 1 else loss * weight).backward()
        else:
            self._weights.weighted(loss, weight).backward()
        if self.is_complete:
            self._divide()

    def step(self) -> None:
        """Make the update of a window that is complete."""
        self._step()
        self._collected = self._weight = 0

    def close(self) -> bool:
        """Make the update of a window that the end of the batches has left open; tell whether there was one."""
        if self._collected == 0:
            return False
        self.is_complete = True
        self._divide()
        self.step()
        return True

    def _divide(self) -> None:
        """Divide the gradients by the weight of the window; the mean over processes needs the mean of their weights."""
        if self._checks_gradients:
            self._parallel.check_gradients()
        weight = self._weight if self._weights is None else self._weights.close()
        if isinstance(weight, torch.Tensor):
            self._divide_on_device(weight)
        elif weight == 0:
            self._clear_to_zeros()
            self._step = self._skip_step
        elif self._is_mean and weight != 1 and (gradients := self._gradients()):
            _divide_all(gradients, weight)

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

    def _skip_step(self) -> None:
        """Make no step for a window without weight."""
        self._step = self._make_step
        clear_gradients(self._optimizer)

    def _gradients(self) -> list[torch.Tensor]:
        """Return what this process holds of the gradients of all that the model and the optimizer hold, each once."""
        return self._parallel.local_parts(each.grad for each in self._parameters() if each.grad is not None)

    def _parameters(self) -> Iterable[torch.Tensor]:
        of_optimizer = (group["params"] for group in getattr(self._optimizer, "param_groups", ()))
        return dict.fromkeys(chain(self._model.parameters(), *of_optimizer))


def _divide_all(gradients: list[torch.Tensor], weight: Any) -> None:
    torch._foreach_div_(gradients, weight)  # pyright: ignore  like torch's clip_grad_norm_


def clear_gradients(optimizer: Any) -> None:
    """Set all gradients to None, as ``optimizer.zero_grad(set_to_none=True)`` does, at a quarter of its price.

    Torch's own method also records itself for the profiler. Any other one, of a class or object of the user's, is
    called.
    """
    if getattr(optimizer.zero_grad, "__func__", None) is not torch.optim.Optimizer.zero_grad:
        optimizer.zero_grad(set_to_none=True)
        return
    for parameter in chain.from_iterable(group["params"] for group in optimizer.param_groups):
        parameter.grad = None
