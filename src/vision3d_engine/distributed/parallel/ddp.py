"""DistributedDataParallel: every process holds the whole model."""

import contextlib
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from vision3d_engine.core.errors import ConfigError, RegistrationError, ResultError, text_of
from vision3d_engine.core.tree import describe
from vision3d_engine.distributed.parallel.base import Parallel
from vision3d_engine.distributed.parallel.gradient_means import GradientMeans, unused_message, whole_mean
from vision3d_engine.distributed.parallel.wrapping import (
    Step,
    StepHolder,
    broadcast,
    outside_parameters,
    running_in,
    trained_parameters,
    unwrap_model,
    with_alias,
    with_synced_norms,
    zeros_of,
)
from vision3d_engine.distributed.world import World

# Whether torch hands out buffers in forward passes; the name of the option has changed in 2.13.
_KNOWN = inspect.signature(DistributedDataParallel.__init__).parameters
_FORWARD_BUFFERS = "forward_sync_buffers" if "forward_sync_buffers" in _KNOWN else "broadcast_buffers"
# So many numbers have one sum, in whatever order they are added.
_ALIKE = 2
_UNFINISHED = "Expected to have finished reduction in the prior iteration"
#: settings ``trainer.*`` that mean nothing to other ways of sharing a model.
DDP_ONLY = ("find_unused_parameters", "static_graph", "gradient_as_bucket_view")


class DataParallel(Parallel):
    """Every process holds the whole model; DistributedDataParallel averages the gradients.

    The user's model stays as it is. DistributedDataParallel holds a module whose forward pass is a whole training step:
    it needs to know where a step begins and ends, not how the step uses the model.

    Args:
        world: the processes.
        trainer: the settings ``trainer.*``.
    """

    def __init__(self, world: World, trainer: Any) -> None:
        super().__init__(world)
        self._trainer = trainer
        self._holder: _GradientExchange | None = None
        self._means: GradientMeans | None = None
        self._has_synced = True

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the user's own model, on the device, with the weights and buffers of the main process."""
        model = with_synced_norms(unwrap_model(model), self.world, self._trainer).to(self.world.device)
        broadcast((*model.parameters(), *model.buffers()), self.world)
        return with_alias(model)

    def exchanging(self, step: Step, model: nn.Module, optimizer: Any, in_parts: bool = False) -> Step:
        """Return a step whose loss exchanges gradients; see `Parallel.exchanging`.

        What is trained may have changed since the last pass (an encoder is unfrozen, groups are added).
        """
        trained = trained_parameters(model, optimizer)
        if in_parts:
            outside = self._checked(outside_parameters(model, optimizer))
            self._means = GradientMeans(model, trained, outside, self.world, self._trainer)
            return self._means.around(step)
        if self._holder is None or not self._holder.is_for(trained):
            outside = self._checked(outside_parameters(model, optimizer))
            self._holder = self._new_holder(model, trained, outside) if trained else None
        else:
            self._holder.forget_weight()
        return step if self._holder is None else running_in(self._holder, step)

    def exchange(self, parameters: Callable[[], Iterable[torch.Tensor]], own: float, expected: float) -> Any:
        """Average the gradients of some parameters, where no backward pass does so; see `Parallel.exchange`."""
        if self._means is not None:
            mean = self._means.exchange(parameters(), own, expected)
        else:
            mean = expected if self._holder is None else self._holder.take_weight(own, expected)
        return mean if self._carries_weight else expected

    def _checked(self, outside: Mapping[str, torch.Tensor]) -> list[Any]:
        """Return what is trained outside the model.

        Raises:
            RegistrationError: for what processes cannot exchange.
        """
        for name, tensor in outside.items():
            if not isinstance(tensor, nn.Parameter) or tensor.device.type != self.world.device.type:
                message = (
                    f"{name} is {describe(tensor)} on {tensor.device}, outside the model: {self.world.size} processes "
                    f"can exchange the gradients of a torch.nn.Parameter on {self.world.device} only. Make it one: "
                    "nn.Parameter(value.to(self.device)), or put it into the model"
                )
                raise RegistrationError(message)
        return list(outside.values())

    def _new_holder(
        self, model: nn.Module, trained: Mapping[str, torch.Tensor], outside: list[nn.Parameter]
    ) -> "_GradientExchange":
        """Return what exchanges the gradients of these parameters; those outside the model begin as the main one's."""
        broadcast(outside, self.world)
        options = {name: getattr(self._trainer, name) for name in DDP_ONLY}
        may_be_unused = self._trainer.find_unused_parameters and not self._trainer.static_graph
        needs_anchor = may_be_unused or self._carries_weight
        anchor = nn.Parameter(torch.zeros(1, device=self.world.device)) if needs_anchor else None
        holder = _GradientExchange(StepHolder(model, outside, anchor), trained, self.world, **options)
        _compress_gradients(holder, self._trainer.gradient_compression)
        self._has_synced = not self._trainer.static_graph
        if self.world.size > _ALIKE and not self._trainer.static_graph and _may_walk_zeros(model, trained.values()):
            holder.settle()
        return holder

    @property
    def joins_with_zeros(self) -> bool:
        """Whether zeros are enough; a static graph and synchronised batch norms need a real step."""
        return not (self._trainer.static_graph or self._trainer.sync_batchnorm)

    @property
    def _carries_weight(self) -> bool:
        """Whether the weight of an update travels with its gradients; in 16 bits it would not arrive as it is."""
        trainer = self._trainer
        return self.joins_with_zeros and trainer.max_skipped > 0 and trainer.gradient_compression == "none"

    def zero_loss(self) -> torch.Tensor:
        """Return a loss with gradients of zeros, without running the user's step.

        Where parameters may be unused, none of them takes part, so that those that no process uses keep no gradient.
        """
        if self._means is not None:
            return self._means.zero_loss()
        return super().zero_loss() if self._holder is None else self._holder.zero_loss()

    def without_gradient_sync(self) -> AbstractContextManager:
        """Return a context in which a step and its backward pass do not exchange gradients between processes.

        A static graph is learnt in the first backward pass, which therefore exchanges them; the sum over the window is
        the same.
        """
        if self._holder is not None and self._has_synced:
            return self._holder.no_sync()
        self._has_synced = True
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def local_forward(self, model: nn.Module, batches: int | None) -> Iterator[None]:
        """Let all processes take the main one's buffers once; a forward pass of the model itself waits for nobody."""
        broadcast(model.buffers(), self.world)
        yield

    @property
    def checks_gradients(self) -> bool:
        """Whether every parameter must have a gradient."""
        return not (self._trainer.find_unused_parameters or self._trainer.static_graph)

    def check_gradients(self) -> None:
        """Name the parameters without a gradient, which DistributedDataParallel would miss only a step later.

        What lies in a bucket with them has not been exchanged, so the update would drive the processes apart.
        """
        if self._holder is not None:
            self._holder.check_gradients()


class _GradientExchange(DistributedDataParallel):
    """Runs steps inside DistributedDataParallel, and names the parameters when it fails for unused ones.

    Buffers are those of the main process at the first step of each update: they are handed out before a step if
    gradients were exchanged since the last time, whatever forward passes were made meanwhile.
    """

    def __init__(self, holder: StepHolder, trained: Mapping[str, torch.Tensor], world: World, **options: Any) -> None:
        super().__init__(holder, init_sync=False, **{_FORWARD_BUFFERS: False}, **options)
        self._world = world
        self._parameters_by_name = dict(trained)
        self._are_buffers_due = True

    def is_for(self, trained: Mapping[str, torch.Tensor]) -> bool:
        """Tell whether these are the parameters that are exchanged."""
        own = self._parameters_by_name
        return own.keys() == trained.keys() and all(own[name] is parameter for name, parameter in trained.items())

    def zero_loss(self) -> torch.Tensor:
        """Return zeros as the result of a step: of all parameters, or of the anchor alone where some may be unused."""
        takes_part = [self.module.anchor] if self.find_unused_parameters else self._parameters_by_name.values()
        return self(lambda: zeros_of(takes_part))

    def forget_weight(self) -> None:
        """Forget what a window has counted that an exception has left open."""
        if self.module.anchor is not None:
            self.module.anchor.grad = None

    def settle(self) -> None:
        """Let torch arrange gradients in its messages now, by a backward pass of zeros.

        It arranges them anew after the first backward pass, in the order in which they have come. With three processes
        and more the order of a sum depends on the place in a message, so that the first step after a resume would round
        otherwise than the same step of a run that went through.
        """
        parameters = list(self.parameters())
        before = [parameter.grad for parameter in parameters]
        torch.autograd.backward(self.zero_loss())
        for parameter, gradient in zip(parameters, before, strict=True):
            parameter.grad = gradient

    def take_weight(self, own: float, expected: float) -> Any:
        """Return the mean weight that was exchanged with the gradients, and begin anew; see `Parallel.exchange`."""
        anchor: nn.Parameter | None = self.module.anchor
        if anchor is None or anchor.grad is None:
            return expected
        gradient, anchor.grad = anchor.grad, None
        return whole_mean(gradient, self._world.size, is_read=own == 0)

    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        """Return the loss of a step."""
        if self._are_buffers_due:
            broadcast(self.module.buffers(), self._world)
            self._are_buffers_due = False
        try:
            loss: Any = super().forward(*inputs, **kwargs)
        except RuntimeError as error:
            if _UNFINISHED not in text_of(error):
                raise
            raise ResultError(unused_message(self._names_in(str(error)))) from error
        if self.require_backward_grad_sync:
            loss.register_hook(self._note_exchange)
        return loss

    def _note_exchange(self, _gradient: torch.Tensor) -> None:
        self._are_buffers_due = True

    def check_gradients(self) -> None:
        """Raise `ResultError` when a parameter has no gradient."""
        if unused := [name for name, parameter in self._parameters_by_name.items() if parameter.grad is None]:
            raise ResultError(unused_message(unused))

    def _names_in(self, message: str) -> list[str]:
        """Return the names that torch's message gives as numbers."""
        found = re.search(r"Parameter indices which did not receive grad for rank \d+: ([\d ]+)", message)
        names = ["(none of the model's)"] * (self.module.anchor is not None) + list(self._parameters_by_name)
        return [names[int(index)] for index in found.group(1).split()] if found else ["(torch names none)"]


def _may_walk_zeros(model: nn.Module, trained: Iterable[torch.Tensor]) -> bool:
    """Tell whether a backward pass of zeros disturbs nobody: no hook of a script's, and no sparse gradient."""
    hooks = ("_backward_hooks", "_post_accumulate_grad_hooks")  # torch has no public way to ask for them
    is_sparse = any(getattr(module, "sparse", False) is True for module in model.modules())
    return not is_sparse and not any(getattr(each, name, None) for each in trained for name in hooks)


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
