"""What a tensor looks like, in a few numbers that wait on its device."""

import torch

NAMES: tuple[str, ...] = ("mean", "std", "zeros", "nonfinite")
_SMALL = (torch.float16, torch.bfloat16)


def statistics(tensor: torch.Tensor) -> torch.Tensor:
    """Return mean and standard deviation of the finite values, the share of zeros, and how many are not finite.

    Computed in float32 or float64, in the order of `NAMES`; nothing is read from the device. Complex values count by
    their magnitude. All are 0 of a tensor without values.
    """
    values = _as_floats(tensor.detach()).flatten()
    is_bad, size = values * 0 != 0, max(values.numel(), 1)  # NaN and infinity; isfinite takes three times as long
    finite, bad = values.masked_fill(is_bad, 0), _count(is_bad, values)
    count = (values.numel() - bad).clamp(min=1)
    mean = finite.sum() / count
    off = finite - mean  # where a value is not finite, it is the mean that counts here
    variance = (off.dot(off) - bad * mean.square()) / count
    return torch.stack([mean, variance.clamp(min=0).sqrt(), _count(values == 0, values) / size, bad])


def _count(mask: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    return mask.to(values.dtype).sum()


def finite_values(tensor: torch.Tensor) -> torch.Tensor:
    """Return the finite values, one after the other, such as for a histogram; waits for the device."""
    values = _as_floats(tensor.detach())
    return values[values.isfinite()]


def _as_floats(tensor: torch.Tensor) -> torch.Tensor:
    values = tensor.abs() if tensor.is_complex() else tensor
    return values.float() if values.dtype in _SMALL or not values.is_floating_point() else values
