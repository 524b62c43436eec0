"""What is summed up of gradients, weights and updates, a number a parameter, on the device."""

from collections.abc import Iterable, Mapping, Sequence

import torch

from vision3d_engine.metrics.step_rows import exact_type

_SMALLEST = 4  # bytes of a type whose norms do not overflow


def squares(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the sum of squares of each tensor: a vector on their device, in float64 where it has that."""
    device = tensors[0].device
    norms = [torch.linalg.vector_norm(_numbers(each)).to(device, exact_type(device)) for each in tensors]
    return torch.stack(norms).square()


def zero_rows(tensors: Iterable[torch.Tensor], like: torch.Tensor) -> torch.Tensor:
    """Return how many rows of each tensor hold zeros alone: a vector like another one."""
    return torch.stack([(each.flatten(1) == 0).all(dim=1).sum().to(like) for each in tensors])


def sums_by_module(sums: Mapping[str, float]) -> dict[str, float]:
    """Return sums of parameters, by name, as sums of the modules that hold them; the outermost one is ``model``."""
    found: dict[str, float] = {}
    for name, value in sums.items():
        module = name.rpartition(".")[0] or "model"
        found[module] = found.get(module, 0) + value
    return found


def _numbers(tensor: torch.Tensor) -> torch.Tensor:
    values = tensor.coalesce().values() if tensor.is_sparse else tensor
    return values if values.element_size() >= _SMALLEST else values.float()
