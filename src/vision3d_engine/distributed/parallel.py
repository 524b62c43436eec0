"""Ways to spread a model over processes, one class each; what holds one does not know which it is."""

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, cast

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from vision3d_engine.core.errors import ConfigError, ResultError, shortened
from vision3d_engine.distributed.world import World

_MAX_NAMES = 8
_UNFINISHED = "Expected to have finished reduction in the prior iteration"
_DATA_PARALLEL_ONLY = ("find_unused_parameters", "static_graph", "gradient_as_bucket_view")


class Parallel:
    """One process: the model is moved to the device and left as it is.

    Args:
        world: the processes.
    """

    #: keeps the shards of all processes in files; None when every process holds the whole model.
    store: Any = None

    def __init__(self, world: World) -> None:
        self.world = world

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the model on the device, as steps shall call it; to be called by all processes."""
        return model.to(self.world.device)

    def without_gradient_sync(self, model: nn.Module) -> AbstractContextManager:
        """Return a context in which a backward pass does not exchange gradients between processes."""
        return contextlib.nullcontext()

    def local_forward(self, model: nn.Module, batches: int | None) -> AbstractContextManager:
        """Return a context in which forward passes wait for no other process, so that shares may be unequal.

        Args:
            model: what `wrap` returned.
            batches: how many this process will walk; None when not known.
        """
        return contextlib.nullcontext()

    def check_gradients(self, model: nn.Module) -> None:
        """Raise `ResultError` when a parameter that takes no part in the loss spoils the exchange of gradients."""

    #: returns what this process holds of each tensor, sharing its memory.
    local_parts: Callable[[Iterable[torch.Tensor]], list[torch.Tensor]] = list

    def of_main(self, value: Any) -> Any:
        """Return the main process's value where all processes have to act alike."""
        return value

    def of_all(self, names: Sequence[str]) -> list[str]:
        """Return the names that any process has found, where each sees only a part of the model."""
        return list(names)


    def gathered(self, names):
        return self.of_all(names)

    def from_main(self, value):
        return self.of_main(value)


class DataParallel(Parallel):
    """Every process holds the whole model; DistributedDataParallel averages the gradients.

    Args:
        world: the processes.
        trainer: the settings ``trainer.*``.
    """

    def __init__(self, world: World, trainer: Any) -> None:
        super().__init__(world)
        self._trainer = trainer
        self._has_synced = not trainer.static_graph

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the model inside DistributedDataParallel; one without anything to train is left as it is."""
        model = with_synced_norms(model, self.world, self._trainer).to(self.world.device)
        if not any(parameter.requires_grad for parameter in model.parameters()):
            return model
        devices = None if self.world.device.type in {"cpu", "mps"} else [self.world.device]
        options = {name: getattr(self._trainer, name) for name in _DATA_PARALLEL_ONLY}
        wrapped = _NamingDataParallel(model, device_ids=devices, **options)
        _compress_gradients(wrapped, self._trainer.gradient_compression)
        return wrapped

    def without_gradient_sync(self, model: nn.Module) -> AbstractContextManager:
        """Return a context in which a backward pass does not exchange gradients between processes.

        A static graph is learnt in the first backward pass, which therefore exchanges them; the sum over the window is
        the same.
        """
        if isinstance(model, DistributedDataParallel) and self._has_synced:
            return model.no_sync()
        self._has_synced = True
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def local_forward(self, model: nn.Module, batches: int | None) -> Iterator[None]:
        """Let all processes take the main one's buffers once, instead of in every forward pass."""
        if not isinstance(model, DistributedDataParallel):
            yield
            return
        take_buffers(model.module, self.world)
        model.require_forward_param_sync = False
        try:
            yield
        finally:
            model.require_forward_param_sync = True

    def check_gradients(self, model: nn.Module) -> None:
        """Name the parameters without a gradient, which DistributedDataParallel would miss only a step later."""
        if self._trainer.find_unused_parameters or self._trainer.static_graph:
            return
        if isinstance(model, DistributedDataParallel):
            parameters = model.module.named_parameters()
            unused = [name for name, parameter in parameters if parameter.requires_grad and parameter.grad is None]
            if unused:
                raise ResultError(_unused_message(unused))


class _NamingDataParallel(DistributedDataParallel):
    """DistributedDataParallel that names the parameters when it fails for unused ones."""

    def __init__(self, module: nn.Module, **options: Any) -> None:
        super().__init__(module, **options)
        self._trained = [name for name, parameter in module.named_parameters() if parameter.requires_grad]

    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        try:
            return super().forward(*inputs, **kwargs)
        except RuntimeError as error:
            if _UNFINISHED not in str(error):
                raise
            raise ResultError(_unused_message(self._names_in(str(error)))) from error

    def _names_in(self, message: str) -> list[str]:
        """Return the names that torch's message gives as numbers."""
        found = re.search(r"Parameter indices which did not receive grad for rank \d+: ([\d ]+)", message)
        return [self._trained[int(index)] for index in found.group(1).split()] if found else ["(torch names none)"]


def _unused_message(names: Sequence[str]) -> str:
    return (
        f"train_step: the loss does not depend on {shortened(names, _MAX_NAMES)}, so that the processes wait for "
        "gradients that never come. Let every parameter take part in the loss, set requires_grad=False on these before "
        "register_model, or set trainer.find_unused_parameters: true"
    )


def _compress_gradients(model: DistributedDataParallel, kind: str) -> None:
    """Exchange gradients as 16-bit numbers.

    Raises:
        ConfigError: when the backend cannot.
    """
    if kind == "none":
        return
    from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

    hook: Any = default_hooks.bf16_compress_hook if kind == "bf16" else default_hooks.fp16_compress_hook
    try:
        model.register_comm_hook(None, hook)
    except TypeError as error:
        message = f"trainer.gradient_compression is '{kind}', which this machine cannot exchange: {error}. Use 'none'"
        raise ConfigError(message) from error


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


def take_buffers(model: nn.Module, world: World) -> None:
    """Overwrite the buffers (running means of norms) with those of the main process."""
    for buffer in model.buffers():
        world.broadcast(buffer)


def choose_parallel(trainer: Any, world: World) -> Parallel:
    """Return the way that the settings ask for; one process always holds the whole model.

    Raises:
        ConfigError: when several processes shall not be parallel, or a setting belongs to another way.
    """
    if world.size == 1:
        return Parallel(world)
    if trainer.parallel == "none":
        message = (
            f"trainer.parallel is 'none', but {world.size} processes were started, which would train {world.size} "
            "models. Set it to 'ddp' or 'fsdp2', or start one process"
        )
        raise ConfigError(message)
    if trainer.parallel == "ddp":
        return DataParallel(world, trainer)
    return _sharded(trainer, world)


def _sharded(trainer: Any, world: World) -> Parallel:
    from vision3d_engine.distributed.sharding import ShardedParallel

    foreign = [name for name in _DATA_PARALLEL_ONLY if getattr(trainer, name)]
    foreign += ["gradient_compression"] if trainer.gradient_compression != "none" else []
    if foreign:
        message = f"trainer.parallel is 'fsdp2', where trainer.{foreign[0]} has no meaning; leave it out, or use 'ddp'"
        raise ConfigError(message)
    return ShardedParallel(world, trainer)


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
