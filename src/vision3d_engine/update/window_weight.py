"""What the gradients of a window of micro-batches are divided by, when batches weigh differently."""

import math
from typing import Any

import torch

from vision3d_engine.core.errors import ResultError
from vision3d_engine.core.tree import describe
from vision3d_engine.distributed.parallel.base import Parallel


class WindowWeight:
    """Weighs losses, and adds up their weights over a window and over all processes.

    Weights are scaled by a power of two, so that the mean weight of the last window lies between 1/2 and 1: gradients
    do not depend on the unit of the weights, and since such scaling is exact, no bit of an update depends on it.
    Nothing is read from the device: with several processes one number is exchanged an update, between hosts as long as
    all weights are numbers of the host, else between devices.

    Args:
        parallel: how the processes share the model and the update.
        kept: an object whose attribute ``weight_scale`` keeps the power of two, also through a resume; None leaves the
            weights as they are.
    """

    def __init__(self, parallel: Parallel, kept: Any = None) -> None:
        self._parallel, self._world = parallel, parallel.world
        self._kept = kept
        self._are_on_device: bool | None = None
        self._sum: Any = 0
        self._before: Any = 0
        self._count = 0

    def weighted(self, loss: torch.Tensor, weight: Any) -> torch.Tensor:
        """Return a loss times its weight, which is added to those of the window.

        One that weighs nothing, by a number of the host, may be NaN: it is replaced by zeros where that is possible.

        Raises:
            ResultError: when the weight is not one number.
        """
        own = _as_weight(weight)
        is_void = not isinstance(own, torch.Tensor) and own == 0
        if self._kept is not None and not is_void:
            own = own * self._kept.weight_scale
        self._before, self._sum = self._sum, self._sum + own
        self._count += 1
        if isinstance(own, torch.Tensor):
            return loss * own.to(loss)
        return self._parallel.zero_loss() if is_void and self._parallel.joins_with_zeros else loss * own

    def take_back(self) -> None:
        """Forget the last loss."""
        self._sum = self._before
        self._count -= 1

    def close(self) -> Any:
        """Return the window's weight, as the mean over all processes, and begin another window."""
        total = self._mean(self._sum)
        if self._kept is not None:
            self._kept.weight_scale = self._kept.weight_scale * _scale_for(total / max(self._count, 1))
        self._sum, self._count = 0, 0
        return total

    def _mean(self, weight: Any) -> Any:
        """Return the mean of all processes' weights; one that is on the device although the first were not is read."""
        if self._world.size == 1:
            return weight
        if self._are_on_device is None:
            self._are_on_device = self._world.host_mean(isinstance(weight, torch.Tensor)) > 0
        if self._are_on_device:
            return self._world.mean(torch.as_tensor(weight, dtype=torch.float64, device=self._world.device))
        return self._world.host_mean(float(weight))


def _as_weight(weight: Any) -> Any:
    """Return a weight as a number or as a tensor without dimensions, of a type that counts exactly."""
    if isinstance(weight, int | float):
        return weight
    if isinstance(weight, torch.Tensor) and weight.numel() == 1 and not weight.is_complex():
        is_precise = weight.device.type != "mps"
        return weight.detach().reshape(()).to(torch.float64 if is_precise else torch.float32)
    try:
        return float(weight)
    except (TypeError, ValueError) as error:
        message = f"loss_weight returned {describe(weight)}; it must be one number, such as len(data_dict['lengths'])"
        raise ResultError(message) from error


def _scale_for(mean: Any) -> Any:
    """Return the power of two that brings a mean weight near 1; 1 where there is none."""
    if not isinstance(mean, torch.Tensor):
        return 2.0 ** -math.frexp(mean)[1] if mean > 0 and math.isfinite(mean) else 1.0
    exponent = torch.frexp(mean).exponent
    return torch.where((mean > 0) & mean.isfinite(), torch.ldexp(torch.ones_like(mean), -exponent), 1.0)
