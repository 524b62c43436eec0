"""Find gradients that are not finite, and keep the batch that made them."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from vision3d_engine.core.errors import NonFiniteError, listed
from vision3d_engine.core.files import atomic_write, make_folder
from vision3d_engine.core.tree import to_cpu
from vision3d_engine.distributed.shards import local_part

_MAX_NAMES = 5


def non_finite_gradients(model: nn.Module) -> list[str]:
    """Return the names of parameters whose gradient holds NaN or infinity; waits for the device.

    Parameters without a gradient (frozen, or not reached) are passed over; of spread ones this process's part counts.
    """
    named = [(name, parameter.grad) for name, parameter in model.named_parameters() if parameter.grad is not None]
    return [name for name, gradient in named if not torch.isfinite(local_part(gradient)).all()]


def check_gradients(model: nn.Module, data_dict: Any, epoch: int, iteration: int, folder: Path) -> None:
    """Raise `NonFiniteError` when a gradient is not finite, after writing the batch into the folder.

    The error names the parameters and the file.
    """
    names = non_finite_gradients(model)
    if not names:
        return
    file = make_folder(folder) / f"batch-epoch{epoch}-iter{iteration}.pt"
    with atomic_write(file) as stream:
        torch.save(to_cpu(data_dict), stream)
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    message = (
        f"epoch {epoch}, iteration {iteration}: the gradient is not finite in {listed(names[:_MAX_NAMES])}{more}. "
        f"The batch is saved in '{file}'"
    )
    raise NonFiniteError(message)
