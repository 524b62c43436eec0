"""DistributedDataParallel: every process holds the whole model."""

import contextlib
import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from vision3d_engine.core.errors import ConfigError, ResultError, shortened
from vision3d_engine.distributed.parallel.base import Parallel
from vision3d_engine.distributed.parallel.wrapping import broadcast_buffers, with_synced_norms
from vision3d_engine.distributed.world import World

_MAX_NAMES = 8
_UNFINISHED = "Expected to have finished reduction in the prior iteration"
#: settings ``trainer.*`` that mean nothing to other ways of sharing a model.
DDP_ONLY = ("find_unused_parameters", "static_graph", "gradient_as_bucket_view")


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
        options = {name: getattr(self._trainer, name) for name in DDP_ONLY}
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
        broadcast_buffers(model.module, self.world)
        model.require_forward_param_sync = False
        try:
            yield
        finally:
            model.require_forward_param_sync = True

    def check_gradients(self, model: nn.Module) -> None:
        """Name the parameters without a gradient, which DistributedDataParallel would miss only a step later."""
        if isinstance(model, _NamingDataParallel) and not (model.find_unused_parameters or model.static_graph):
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
