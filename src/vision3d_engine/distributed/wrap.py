"""DistributedDataParallel around a model, and the model inside whatever wraps it."""

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import cast

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from vision3d_engine.distributed.world import World


def wrap_model(model: nn.Module, world: World, *, find_unused_parameters: bool = False) -> nn.Module:
    """Return the model ready for this world: as it is for one process, inside DistributedDataParallel for several."""
    if world.size == 1 or not any(parameter.requires_grad for parameter in model.parameters()):
        return model
    devices = None if world.device.type in {"cpu", "mps"} else [world.device]
    return DistributedDataParallel(model, device_ids=devices, find_unused_parameters=find_unused_parameters)


def unwrap_model(model: nn.Module) -> nn.Module:
    """Return the user's own module without DistributedDataParallel, DataParallel or ``torch.compile`` around it."""
    while True:
        if isinstance(model, DistributedDataParallel | nn.DataParallel):
            model = model.module
        elif hasattr(model, "_orig_mod"):
            model = cast("nn.Module", model._orig_mod)  # noqa: SLF001  torch.compile's name for the wrapped module
        else:
            return model


def without_gradient_sync(model: nn.Module) -> AbstractContextManager:
    """Return a context in which a backward pass does not exchange gradients between processes."""
    if isinstance(model, DistributedDataParallel):
        return model.no_sync()
    return contextlib.nullcontext()


@contextlib.contextmanager
def local_forward(model: nn.Module, world: World) -> Iterator[None]:
    """Let forward passes wait for no other process, as validation needs it when the processes' shares are unequal.

    DistributedDataParallel exchanges buffers (running means of norms) in every forward pass, also without gradients;
    here all processes take those of the main one once, before the block.
    """
    if not isinstance(model, DistributedDataParallel):
        yield
        return
    for buffer in model.module.buffers():
        world.broadcast(buffer)
    model.require_forward_param_sync = False
    try:
        yield
    finally:
        model.require_forward_param_sync = True


def clean_key(key: str) -> str:
    """Return a parameter's name without the ``module.`` and ``_orig_mod.`` that wrappers put in front."""
    parts = key.split(".")
    while parts and parts[0] in {"module", "_orig_mod"}:
        parts = parts[1:]
    return ".".join(parts) or key
