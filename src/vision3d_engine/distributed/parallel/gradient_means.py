"""The exchange of gradients after a backward pass, by one all-reduce, where a step walks back several losses."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from vision3d_engine.core.errors import ConfigError, ResultError, shortened
from vision3d_engine.distributed.parallel.wrapping import Step, broadcast, buckets, zeros_of
from vision3d_engine.distributed.world import World

_MAX_NAMES = 8
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_FOREIGN = ("static_graph", "gradient_as_bucket_view")


class GradientMeans:
    """Averages gradients over all processes when it is asked to; buffers are the main one's, once an update.

    DistributedDataParallel exchanges gradients in one backward pass after one forward pass of all parameters, so that
    it cannot serve a step in which two networks take turns.

    Args:
        model: whose buffers are handed out.
        trained: what is trained, by name.
        outside: what of it lies outside the model; it begins as the main process's.
        world: the processes.
        trainer: the settings ``trainer.*``.

    Raises:
        ConfigError: for settings of DistributedDataParallel that have no meaning here.
    """

    def __init__(
        self,
        model: nn.Module,
        trained: Mapping[str, torch.Tensor],
        outside: Sequence[torch.Tensor],
        world: World,
        trainer: Any,
    ) -> None:
        if foreign := next((name for name in _FOREIGN if getattr(trainer, name)), None):
            message = f"trainer.{foreign} has no meaning with several optimizers, whose gradients are exchanged one "
            raise ConfigError(message + "after the other; leave it out")
        self._model, self._world = model, world
        self._trained = list(trained.values())
        self._names = {id(parameter): name for name, parameter in trained.items()}
        self._may_be_unused = trainer.find_unused_parameters
        self._dtype = _DTYPES.get(trainer.gradient_compression)
        self._are_buffers_due = True
        broadcast(outside, world)

    def around(self, step: Step) -> Step:
        """Return a step that begins with the main process's buffers when gradients were exchanged meanwhile."""

        def run(*args: Any) -> tuple[Any, ...]:
            self._hand_out_buffers()
            return step(*args)

        return run

    def _hand_out_buffers(self) -> None:
        if self._are_buffers_due:
            broadcast(self._model.buffers(), self._world)
            self._are_buffers_due = False

    def zero_loss(self) -> torch.Tensor:
        """Return a loss with gradients of zeros for all that is trained; of none where some may be unused."""
        self._hand_out_buffers()
        return torch.zeros((), requires_grad=True) if self._may_be_unused else zeros_of(self._trained)

    def exchange(self, parameters: Iterable[torch.Tensor], own: float, expected: float) -> Any:
        """Average the gradients of parameters; to be called by all processes, with the same ones.

        The weight that this process has put into them travels with them; the mean of all is returned, see
        `Parallel.exchange`.

        Raises:
            ResultError: when one has no gradient, unless ``trainer.find_unused_parameters`` is set. Then zeros stand
                for it where another process has one.
        """
        self._are_buffers_due = True
        gradients = self._complete([parameter for parameter in parameters if parameter.requires_grad])
        gradients = [torch.view_as_real(each) if each.is_complex() else each for each in gradients]
        weight: torch.Tensor | None = None
        for bucket in buckets(gradients):
            further = [] if weight is not None else [bucket[0].new_full((1,), own)]
            whole = torch.cat([gradient.reshape(-1) for gradient in bucket] + further)
            mean = self._world.mean(whole if self._dtype is None else whole.to(self._dtype))
            parts = mean.split([each.numel() for each in (*bucket, *further)])
            for gradient, part in zip(bucket, parts, strict=False):
                gradient.copy_(part.view(gradient.shape))
            weight = parts[-1] if further else weight
        return expected if weight is None else whole_mean(weight, self._world.size, is_read=own == 0)

    def _complete(self, parameters: list[torch.Tensor]) -> list[torch.Tensor]:
        """Return the gradients that take part, the same on all processes."""
        unused = [parameter for parameter in parameters if parameter.grad is None]
        if unused and not self._may_be_unused:
            names = [self._names.get(id(parameter), "(a parameter that was added)") for parameter in unused]
            raise ResultError(unused_message(names))
        if self._may_be_unused:
            used = self._world.gather([parameter.grad is not None for parameter in parameters])
            for parameter, is_used in zip(parameters, map(any, zip(*used, strict=True)), strict=True):
                if is_used and parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
        return [parameter.grad for parameter in parameters if parameter.grad is not None]


def whole_mean(mean: torch.Tensor, size: int, is_read: bool) -> Any:
    """Return a mean of whole numbers over processes without what rounding has made of it.

    It is a number where reading costs nothing or must be, else on the device. Only who has put nothing into a mean has
    to read it, to see whether it is zero.
    """
    total = (mean.sum().double() * size).round()
    return (float(total) if is_read or mean.device.type == "cpu" else total) / size


def unused_message(names: Sequence[str]) -> str:
    """Return what to say of parameters without a gradient."""
    return (
        f"train_step: the loss does not depend on {shortened(names, _MAX_NAMES)}, so that the processes wait for "
        "gradients that never come. Let every parameter take part in the loss, set requires_grad=False on these before "
        "the epoch, or set trainer.find_unused_parameters: true"
    )
