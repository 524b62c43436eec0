"""What the numbers of steps weigh in means, as tensors beside them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

# What a step's numbers weigh: one number or tensor for all keys, or one a key; a key that is left out weighs 1.
Weights = Any


def row_weight(weights: Weights, keys: Sequence[str]) -> Any:
    """Return what the values of a row weigh: one number, or one a key as a tuple or, of tensors, a vector."""
    if not isinstance(weights, Mapping):
        if isinstance(weights, torch.Tensor):
            return weights.detach().reshape(1).repeat(len(keys))  # a copy, since it may be changed in place
        return plain_weight(weights)
    each = [plain_weight(weights.get(key, 1)) for key in keys]
    tensor = next((weight for weight in each if isinstance(weight, torch.Tensor)), None)
    if tensor is None:
        return tuple(each)
    exact = torch.float32 if tensor.device.type == "mps" else torch.float64
    found = [torch.as_tensor(weight, dtype=exact, device=tensor.device) for weight in each]
    return torch.stack([weight.detach().reshape(()) for weight in found])


def plain_weight(weight: Any) -> Any:
    """Return a weight as a number or a tensor; an array of one element is a number."""
    return weight.item() if isinstance(weight, np.ndarray) else weight
