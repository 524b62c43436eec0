"""What is around a user's module, and what is done to it before it is wrapped."""

from typing import Any, cast

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from vision3d_engine.core.errors import ConfigError
from vision3d_engine.distributed.world import World


def unwrap_model(model: nn.Module) -> nn.Module:
    """Return the user's own module without DistributedDataParallel, DataParallel or ``torch.compile`` around it."""
    while True:
        if isinstance(model, DistributedDataParallel | nn.DataParallel):
            model = model.module
        elif hasattr(model, "_orig_mod"):
            model = cast("nn.Module", model._orig_mod)  # noqa: SLF001  torch.compile's name for the wrapped module
        else:
            return model


def clean_key(key: str) -> str:
    """Return a parameter's name without the ``module.`` and ``_orig_mod.`` that wrappers put in front."""
    parts = key.split(".")
    while parts and parts[0] in {"module", "_orig_mod"}:
        parts = parts[1:]
    return ".".join(parts) or key


def with_synced_norms(model: nn.Module, world: World, trainer: Any) -> nn.Module:
    """Return the model with batch norms over all processes' batches, if ``trainer.sync_batchnorm`` asks for it.

    Raises:
        ConfigError: on the CPU, where torch has none.
    """
    if not trainer.sync_batchnorm:
        return model
    if world.device.type == "cpu":
        message = (
            "trainer.sync_batchnorm is true, but torch has SyncBatchNorm for accelerators only and this run is on the "
            "CPU. Set it to false, or use a norm without batch statistics (GroupNorm, LayerNorm)"
        )
        raise ConfigError(message)
    return cast("nn.Module", nn.SyncBatchNorm.convert_sync_batchnorm(model))


def broadcast_buffers(model: nn.Module, world: World) -> None:
    """Overwrite the buffers (running means of norms) with those of the main process."""
    for buffer in model.buffers():
        world.broadcast(buffer)
