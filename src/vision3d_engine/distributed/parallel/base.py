"""What holds a model asks of the way in which processes share it; and the null object for one process."""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from vision3d_engine.distributed.parallel.wrapping import Step
from vision3d_engine.distributed.world import World


class Parallel:
    """One process: the model is moved to the device and left as it is.

    Args:
        world: the processes.
    """

    #: keeps the shards of all processes in files; None when every process holds the whole model.
    store: Any = None
    #: whether a process without a batch can join an update by a `zero_loss`; otherwise it needs a real step.
    joins_with_zeros = True
    #: whether `check_gradients` looks at anything.
    checks_gradients = False

    def __init__(self, world: World) -> None:
        self.world = world

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the user's own model, on the device and equal everywhere; to be called by all processes."""
        return model.to(self.world.device)

    def exchanging(self, step: Step, model: nn.Module, optimizer: Any, in_parts: bool = False) -> Step:
        """Return a step like the given one, after which the backward pass of its loss exchanges gradients.

        Whatever the step does with the model takes part: calls of its methods, its submodules, a reference of the
        user's own. To be called by all processes, at the start of each pass.

        Args:
            step: returns the loss first, and anything after it.
            model: what `wrap` returned.
            optimizer: whose parameters are exchanged too.
            in_parts: gradients are exchanged by `exchange` instead, those of one optimizer at a time, since a step may
                walk back several losses.
        """
        return step

    def walked_back_to(
        self, parameters: Sequence[torch.Tensor], others: Iterable[torch.Tensor]
    ) -> AbstractContextManager[Sequence[torch.Tensor] | None]:
        """Return a context in which a backward pass gives gradients to some parameters alone.

        It yields what the pass is told as its ``inputs``; None where torch cannot be told.

        Args:
            parameters: those that get gradients.
            others: those that keep what they have.
        """
        return contextlib.nullcontext(parameters)

    def exchange(self, parameters: Callable[[], Iterable[torch.Tensor]], own: float, expected: float) -> Any:
        """Average the gradients of some parameters over all processes, where the backward pass has not done so.

        Return the mean of all processes' weights: a number, or one on the device, which is then larger than 0.

        Args:
            parameters: returns those whose gradients are meant.
            own: weight that this process has put into its gradients.
            expected: mean of all processes' weights as it is when none of them has left out a batch.
        """
        return expected

    def zero_loss(self) -> torch.Tensor:
        """Return a loss that teaches nothing: of a batch without weight, or of a process without a batch."""
        return torch.zeros((), requires_grad=True)

    def without_gradient_sync(self) -> AbstractContextManager:
        """Return a context in which a step and its backward pass do not exchange gradients between processes."""
        return contextlib.nullcontext()

    def local_forward(self, model: nn.Module, batches: int | None) -> AbstractContextManager:
        """Return a context in which forward passes wait for no other process, so that shares may be unequal.

        Args:
            model: what `wrap` returned.
            batches: how many this process will walk; None when not known.
        """
        return contextlib.nullcontext()

    def release(self, model: nn.Module) -> None:
        """Let the parameters be what this process holds of them; what was gathered is gathered anew when needed."""

    def check_gradients(self) -> None:
        """Raise `ResultError` when a parameter that takes no part in the loss spoils the exchange of gradients."""

    #: returns what this process holds of each tensor, sharing its memory.
    local_parts: Callable[[Iterable[torch.Tensor]], list[torch.Tensor]] = list

    def from_main(self, value: Any) -> Any:
        """Return the main process's value where all processes have to act alike."""
        return value
