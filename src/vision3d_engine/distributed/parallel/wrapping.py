"""The user's own module: what is taken off it, what is done to it, and what holds it while a step runs."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from vision3d_engine.core.errors import ConfigError
from vision3d_engine.distributed.world import World

_MESSAGE_BYTES = 1 << 25
#: runs the user's step and returns its loss first.
Step = Callable[..., tuple[Any, ...]]


class StepHolder(nn.Module):
    """A module whose forward pass is a whole training step, so that what wraps it does not come between user and model.

    Args:
        model: the user's module.
        outside: parameters that are trained beside it.

    Attributes:
        anchor: a parameter of nothing, through which a loss takes part in an exchange without any other. Its gradient
            is the number of losses that were walked back with a weight, so that it is averaged with the gradients.
    """

    def __init__(
        self, model: nn.Module, outside: Iterable[nn.Parameter] = (), anchor: nn.Parameter | None = None
    ) -> None:
        super().__init__()
        self.anchor = anchor
        self.module = model
        self.outside = nn.ParameterList(outside)

    def forward(self, call: Callable[[], Any]) -> Any:
        """Return what the call returns: a loss."""
        return call() if self.anchor is None else _Counted.apply(call(), self.anchor)


class _Counted(torch.autograd.Function):
    """A loss that counts itself in the gradient of an anchor, unless its own gradient is zero; nothing is read."""

    @staticmethod
    def forward(_ctx: Any, loss: torch.Tensor, _anchor: torch.Tensor) -> torch.Tensor:
        """Return the loss as it is."""
        return loss.view_as(loss)

    @staticmethod
    def backward(_ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the gradients of loss and anchor."""
        return gradient, (gradient != 0).float().reshape(1)


def running_in(module: nn.Module, step: Step) -> Step:
    """Return a step that runs as the forward pass of a `StepHolder` or of what is around one.

    Of what the step returns only the loss leaves by that way, as the root of the graph that is walked back.
    """

    def run(*args: Any) -> tuple[Any, ...]:
        rest: list[Any] = []

        def call() -> torch.Tensor:
            loss, *rest[:] = step(*args)
            return loss

        return module(call), *rest

    return run


def trained_parameters(model: nn.Module, optimizer: Any) -> dict[str, torch.Tensor]:
    """Return what requires grad by name: the model's parameters, and whatever else the optimizer holds."""
    own = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    return own | outside_parameters(model, optimizer)


def outside_parameters(model: nn.Module, optimizer: Any) -> dict[str, torch.Tensor]:
    """Return what an optimizer trains outside the model, such as learnable weights of losses, by its place there."""
    known = {id(parameter) for parameter in model.parameters()}
    return {
        f"optimizer.param_groups[{number}]['params'][{place}]": tensor
        for number, group in enumerate(getattr(optimizer, "param_groups", ()))
        for place, tensor in enumerate(group["params"])
        if tensor.requires_grad and id(tensor) not in known
    }


def zeros_of(parameters: Iterable[torch.Tensor]) -> torch.Tensor:
    """Return a loss whose gradients are zeros."""
    return torch.stack([parameter.sum().real for parameter in parameters]).sum() * 0


def with_alias(model: nn.Module) -> nn.Module:
    """Return the model, which also answers to ``model.module``, as scripts write that know it wrapped.

    The name is no submodule, so it shows in no state.
    """
    if not hasattr(model, "module"):
        with contextlib.suppress(AttributeError, RuntimeError):  # a scripted module takes no names
            object.__setattr__(model, "module", model)
    return model


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


def broadcast(tensors: Iterable[torch.Tensor], world: World) -> None:
    """Overwrite tensors in place (weights; running means of norms) with those of the main process, of any type.

    Many small ones travel in one message.
    """
    for bucket in buckets([tensor.detach() for tensor in tensors if tensor.numel()]):
        parts = [_bytes_of(tensor) for tensor in bucket]
        message = parts[0] if len(parts) == 1 else torch.cat(parts)
        world.broadcast(message)
        for tensor, part in zip(bucket, message.split([len(part) for part in parts]), strict=True):
            tensor.copy_(part.view(tensor.dtype).view(tensor.shape))


def buckets(tensors: list[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Yield groups of tensors that travel in one message; wide types first, so that each begins where its type may."""
    bucket: list[torch.Tensor] = []
    size = 0
    for tensor in sorted(tensors, key=lambda each: -each.element_size()):
        if bucket and size + tensor.nbytes > _MESSAGE_BYTES:
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.nbytes
    if bucket:
        yield bucket


def _bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)
