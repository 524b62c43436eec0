"""The one place where an update is made: a window of micro-batches, one gradient, one step of each optimizer."""

import contextlib
from collections.abc import Callable, Collection, Iterable
from contextlib import AbstractContextManager
from functools import partial
from itertools import chain
from typing import Any, ClassVar

import torch
from torch.autograd.graph import increment_version

from vision3d_engine.core.errors import ResultError, listed, text_of
from vision3d_engine.core.tree import describe
from vision3d_engine.distributed.parallel.base import Parallel
from vision3d_engine.optim.named_optimizers import optimizers_of
from vision3d_engine.update.clipping import Clipping, gradient_norm
from vision3d_engine.update.gradient_window import GradientWindow
from vision3d_engine.update.held import clear_gradients, held, trained
from vision3d_engine.update.precision import Precision
from vision3d_engine.update.whole_backward import WholeBackward
from vision3d_engine.update.window_weight import WindowWeight

_EXCHANGING = contextlib.nullcontext()
_REACHES_BACK = (
    "a loss reaches through a graph that self.update(...) has walked back already, or through weights that "
    "it has changed. Compute it anew after self.update (the discriminator's answer too), detach what it "
    "shares with the other loss, and return no loss that was handed to self.update"
)
_TWICE = (
    "update('{}') came twice in one step, whose window has {} batches (trainer.grad_acc_steps): call it once a step, "
    "or set trainer.grad_acc_steps to 1"
)
_TOO_LATE = (
    "a batch is to be left out after self.update for {} in the same step, which has trained on it already: raise "
    "SkipBatch before the first self.update, or call self.update(..., weight=0) and return a loss without weight"
)
_USED_UP = ("backward through the graph a second time", "modified by an inplace operation")


class Update:
    """Collects the gradients of a window of micro-batches and makes them one update.

    In this order: backward, and in the micro-batch that ends the window exchange, divide, unscale; then, in `step`,
    clip and let the optimizers make their steps. What a step returns as its loss drives all optimizers, but for those
    that the step has updated by itself (`make`).

    Args:
        trainer: whose model, optimizers, ``backward`` and ``optimizer_step`` are used.
        settings: the settings ``trainer.*``.
        parallel: how the processes share the model and the update.
        precision: scales losses, and lets optimizers make their steps.
        weights: what adds the weights up; None when every micro-batch weighs the same on every process.
        follow: called after each update that was made, such as by an average of the weights; None for nobody.

    Attributes:
        is_complete: whether the micro-batch at hand ends its window.
        is_shared: whether the loss of a step drives all optimizers: no step of the window has updated one by itself.
        learns: whether the update of a window that is complete has anything to teach through the returned losses.
        is_joining: whether this process joins in the micro-batch at hand without a batch of its own.
        mean_weight: with equal weights, the mean of all processes' weights for the micro-batch at hand.
        norms: norms of the gradients before they were clipped, by the name under which they are logged, with what they
            weigh in means: nothing when the update is skipped.
    """

    PARTS: ClassVar = {"_backward": "backward", **dict.fromkeys(("exchange", "step", "_finish"), "optimizer")}

    def __init__(
        self,
        trainer: Any,
        settings: Any,
        parallel: Parallel,
        precision: Precision,
        weights: WindowWeight | None,
        follow: Callable[[], None] | None = None,
    ) -> None:
        self.is_complete = self.is_joining = False
        self.is_shared = True
        self.mean_weight: float = 1
        self.norms: dict[str, tuple[torch.Tensor, Any]] = {}
        self._trainer, self._parallel, self._precision = trainer, parallel, precision
        self._scaling = precision if precision.is_scaled else None
        self._follow = follow
        self._window_size = settings.grad_acc_steps
        self._is_mean = settings.grad_acc_reduction == "mean"
        self._optimizers = optimizers_of(trainer.optimizer)
        self._clippings = {name: _clipping(trainer.optimizer, name, settings) for name in self._optimizers}
        self._limited = {name for name, each in self._clippings.items() if each is not None or precision.is_scaled}
        self._shared = self._new_window(self._parameters, weights)
        self._backward = trainer.backward
        if settings.on_oom == "skip":
            self._backward = WholeBackward(self._backward, self._parameters, self._shared.take_back)
        self._own: dict[str, GradientWindow] = {}
        self._rest = self._optimizers
        self._walked: list[torch.Tensor] = []
        self._made: dict[str, int] = {}
        self._collected, self.learns, self._has_stepped = 0, False, False

    def _new_window(self, parameters: Any, weights: WindowWeight | None) -> GradientWindow:
        return GradientWindow(parameters, self._parallel, is_mean=self._is_mean, weights=weights)

    def micro_batch(self, is_last: bool) -> AbstractContextManager:
        """Start a micro-batch; gradients are exchanged between processes only in the one that ends the window.

        Args:
            is_last: no micro-batch follows in this pass, so the window ends even if it is not full.
        """
        self._collected += 1
        self.is_complete = is_last or self._collected >= self._window_size
        return _EXCHANGING if self.is_complete else self._parallel.without_gradient_sync()

    def backward(self, loss: Any, weight: Any = 1) -> None:
        """Add the weighted gradients of one micro-batch; `exchange` follows when it ends its window.

        Args:
            loss: one number that requires grad. After `make` it may be anything: what does not require grad, or was
                walked back there, teaches nothing more.
            weight: number of things that the loss is a mean over, as a number or a tensor on the device (not read).
        """
        if self.is_shared:
            loss = self._shared.weighted(loss, weight, self.mean_weight)
            self._backward(loss if self._scaling is None else self._scaling.scale(loss))
        else:
            self._backward_to_rest(loss, weight)

    def exchange(self) -> None:
        """Exchange and divide the gradients of a window, if it is complete; what fails here is left out no more."""
        if self.is_complete and self._shared.is_open:
            self.learns = self._shared.close()
            for optimizer in self._rest.values() if self._scaling is not None else ():
                self._precision.unscale(optimizer)

    def _backward_to_rest(self, loss: Any, weight: Any) -> None:
        """Walk a loss back to the optimizers that have had none of their own, if it can teach them anything."""
        is_new = not any(loss is each for each in self._walked)
        self._walked.clear()
        teaches = is_new and isinstance(loss, torch.Tensor) and loss.requires_grad
        if teaches and any(map(trained, self._rest.values())):
            self._walk_back(self._shared.weighted(loss, weight, self.mean_weight), list(self._rest.values()))

    def _walk_back(self, loss: torch.Tensor, optimizers: Collection[Any]) -> None:
        """Add gradients to the parameters of some optimizers alone.

        Raises:
            ResultError: when the loss reaches through what an update in the midst of the step has used up or changed.
        """
        parameters = [parameter for optimizer in optimizers for parameter in trained(optimizer)]
        others = [each for one in self._optimizers.values() if one not in optimizers for each in held(one)]
        try:
            with self._parallel.walked_back_to(parameters, others) as inputs:
                self._backward(self._precision.scale(loss), inputs=inputs)
        except RuntimeError as error:
            if not any(part in text_of(error) for part in _USED_UP):
                raise
            raise ResultError(_REACHES_BACK) from error

    def skip(self) -> None:
        """Leave the micro-batch at hand out; one of several processes joins in the others' update without it.

        Raises:
            ResultError: when it has trained an optimizer already.
        """
        if made := [name for name, number in self._made.items() if number == self._collected]:
            raise ResultError(_TOO_LATE.format(listed(made)))
        if self._parallel.world.size > 1:
            with _EXCHANGING if self.is_complete else self._parallel.without_gradient_sync():
                self._trainer.backward(self._precision.scale(self._shared.left_out(self.mean_weight)))
        self.exchange()

    def step(self) -> None:
        """Make the update of a window that is complete."""
        if self._own:
            self._finish_open()
        for name, optimizer in self._rest.items():
            self._step(name, optimizer, self.learns)
        if self._scaling is not None:
            self._scaling.end_update()
        if self._follow is not None and self._has_stepped:
            self._follow()
        self._collected, self.learns, self._has_stepped = 0, False, False
        if not self.is_shared:
            self._rest, self.is_shared = self._optimizers, True
            self._made.clear()

    def take_norms(self) -> dict[str, tuple[torch.Tensor, Any]]:
        """Return the norms of the update that was made, and forget them."""
        norms, self.norms = self.norms, {}
        return norms

    def close(self) -> bool:
        """Make the update of a window that the end of the batches has left open; tell whether there was one."""
        if self._collected == 0:
            return False
        self.is_complete = True
        self._finish_open()  # before the returned losses, as in other windows
        self.exchange()
        self.step()
        return True

    def _finish_open(self) -> None:
        """Make the steps of optimizers whose own losses came before the last batch of the window alone."""
        for name in [name for name, window in self._own.items() if window.is_open]:
            self._finish(name)

    # ------------------------------------------------------------------------------------------- in a step

    def make(self, name: str, loss: torch.Tensor, weight: Any = None) -> None:
        """Do all of the above for one optimizer alone; see ``BaseTrainer.update``."""
        optimizer = self._trainer.optimizer[name]
        self._check_own(name, loss)
        if self._made.get(name) == self._collected:
            self._precision.end_update()  # a further update of the same step
        self._made[name] = self._collected
        self._walked.append(loss)  # itself: the number of one that is gone is given away again
        self._rest, self.is_shared = {other: one for other, one in self._rest.items() if other != name}, False
        window = self._own_window(name, optimizer, weight is not None)
        weight = 0 if self.is_joining else 1 if weight is None else weight
        with self._precision.full():
            loss = window.weighted(loss, weight, self.mean_weight)
            self._walk_back(loss, (optimizer,))
        if self.is_complete:
            self._finish(name)

    def _own_window(self, name: str, optimizer: Any, is_weighted: bool) -> GradientWindow:
        """Return what adds up the gradients of an optimizer's own losses; equal weights need no adding up.

        Raises:
            ResultError: when some losses of an optimizer have weights and others have none.
        """
        if name not in self._own:
            weights = WindowWeight(self._parallel) if is_weighted else None
            self._own[name] = self._new_window(partial(held, optimizer), weights)
        window = self._own[name]
        if window.is_weighted is not is_weighted:
            message = f"update('{name}') was called with a weight and without; give weight= in all calls, or in none"
            raise ResultError(message)
        return window

    def _check_own(self, name: str, loss: Any) -> None:
        """Refuse what cannot be an update of one optimizer alone.

        Raises:
            ResultError: saying what to do about it.
        """
        _refuse_unteachable(name, loss, self._optimizers[name])
        if self._shared.is_open and name in self._rest:
            message = (
                f"update('{name}') in the midst of a window (trainer.grad_acc_steps) whose first losses, returned by "
                "train_step, have driven this optimizer too: call it in every step, or in none"
            )
            raise ResultError(message)
        if self._made.get(name) == self._collected and self._window_size > 1:
            raise ResultError(_TWICE.format(name, self._window_size))

    def _finish(self, name: str) -> None:
        """Make the step of one optimizer alone."""
        optimizer, learns = self._optimizers[name], self._own[name].close()
        self._precision.unscale(optimizer)
        self._step(name, optimizer, learns)
        increment_version(trained(optimizer))  # fused kernels do not, so that torch would miss a loss from before

    # ------------------------------------------------------------------------------------------- one optimizer

    def _step(self, name: str | None, optimizer: Any, learns: bool) -> None:
        """Clip, and let an optimizer make its step; for a window without weight only clear."""
        if not learns:
            clear_gradients(optimizer)
            return
        self._has_stepped = True
        if name in self._limited:
            self._limit(name, optimizer, self._clippings[name])
        self._trainer.optimizer_step() if name is None else self._trainer.optimizer_step(name)
        if self._scaling is not None:
            self._scaling.check_step(optimizer)

    def _limit(self, name: str | None, optimizer: Any, clipping: Clipping | None) -> None:
        parameters = trained(optimizer)
        norm = gradient_norm(parameters) if self._precision.is_scaled else None
        if norm is not None:
            self._precision.count(norm)
        norm = norm if clipping is None else clipping(parameters, norm)
        if norm is not None:
            weight = norm.isfinite() if self._precision.is_scaled else 1
            self.norms["grad_norm" if name is None else f"grad_norm/{name}"] = norm, weight

    def _parameters(self) -> Iterable[torch.Tensor]:
        """Yield what the loss of a step drives: all that model and optimizers hold, each once."""
        own = chain.from_iterable(map(held, self._rest.values()))
        return dict.fromkeys(chain(self._trainer.model.parameters(), own) if self.is_shared else own)


def _clipping(optimizer: Any, name: str | None, settings: Any) -> Clipping | None:
    """Return what clips the gradients of an optimizer: its own limits, else those of the settings; None for none."""
    own = None if name is None else optimizer.limits[name]
    norm, value = (
        own_limit if own is not None and (own_limit := getattr(own, kind)) is not None else getattr(settings, kind)
        for kind in ("clip_grad_norm", "clip_grad_value")
    )
    return None if norm is None and value is None else Clipping(norm, value)


def _refuse_unteachable(name: str, loss: Any, optimizer: Any) -> None:
    """Raise `ResultError` for a loss that is none, and for an optimizer that trains nothing."""
    if not isinstance(loss, torch.Tensor) or not loss.requires_grad or loss.numel() != 1:
        raise ResultError(f"update('{name}') got {describe(loss)} as loss; it must be one number that requires grad")
    if not trained(optimizer):
        message = f"update('{name}'): no parameter of this optimizer requires grad; leave the call out, or unfreeze"
        raise ResultError(message)
