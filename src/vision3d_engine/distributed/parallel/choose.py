"""Which way of sharing a model the settings ask for."""

from typing import Any

from vision3d_engine.core.errors import ConfigError
from vision3d_engine.distributed.parallel.base import Parallel
from vision3d_engine.distributed.parallel.ddp import DDP_ONLY, DataParallel
from vision3d_engine.distributed.world import World


def choose_parallel(trainer: Any, world: World) -> Parallel:
    """Return the way that the settings ask for; one process always holds the whole model.

    Raises:
        ConfigError: when several processes shall not be parallel, or a setting belongs to another way.
    """
    if world.size == 1:
        return Parallel(world)
    if trainer.parallel == "none":
        message = f"trainer.parallel is 'none', but {world.size} processes were started, which would train "
        raise ConfigError(f"{message}{world.size} models. Set it to 'ddp' or 'fsdp2', or start one process")
    if trainer.parallel == "ddp":
        return DataParallel(world, trainer)
    from vision3d_engine.distributed.parallel.fsdp2 import FullyShardedParallel

    foreign = [name for name in DDP_ONLY if getattr(trainer, name)]
    foreign += ["gradient_compression"] if trainer.gradient_compression != "none" else []
    if foreign:
        message = f"trainer.parallel is 'fsdp2', where trainer.{foreign[0]} has no meaning; leave it out, or use 'ddp'"
        raise ConfigError(message)
    return FullyShardedParallel(world, trainer)
