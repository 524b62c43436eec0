"""What a tensor looks like, in a few numbers that wait on its device."""

import torch

NAMES: tuple[str, ...] = ("mean", "std", "zeros", "nonfinite")
_SMALL = (torch.float16, torch.bfloat16)


def statistics(tensor: torch.Tensor) -> torch.Tensor:
    """Return mean and standard deviation of the finite values, the share of zeros, and how many are not finite.

    Computed in float32 or float64, in the order of `NAMES`; nothing is read from the device. Complex values count by
    their magnitude. All are 0 of a tensor without values.
    """
    values = _as_floats(tensor.detach())
    is_finite = values.isfinite()
    finite = values.masked_fill(~is_finite, 0)
    count = is_finite.sum().clamp(min=1)
    mean = finite.sum() / count
    spread = ((finite - mean).square() * is_finite).sum() / count
    zeros = (values == 0).sum() / max(values.numel(), 1)
    return torch.stack([mean, spread.sqrt(), zeros.to(mean), (~is_finite).sum().to(mean)])


def finite_values(tensor: torch.Tensor) -> torch.Tensor:
    """Return the finite values, one after the other, such as for a histogram; waits for the device."""
    values = _as_floats(tensor.detach())
    return values[values.isfinite()]


def _as_floats(tensor: torch.Tensor) -> torch.Tensor:
    values = tensor.abs() if tensor.is_complex() else tensor
    return values.float() if values.dtype in _SMALL or not values.is_floating_point() else values
