"""Updates to which a process adds nothing: it has no batch left while others have, or it leaves one out."""

import contextlib
import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch

from vision3d_engine.core.errors import SkipBatch
from vision3d_engine.distributed.parallel.wrapping import Step
from vision3d_engine.loop.context import PassContext
from vision3d_engine.loop.uneven_ranks import UnevenRanks
from vision3d_engine.update.update import Update


class Joining:
    """Lets a process join in the updates of others without weight; it shows in no mean.

    Of the hooks only `after_backward` acts, when a window ends: what it does to the gradients of the update (clips
    them) must happen on all processes. It gets the dicts of the last step that was this process's own; for a batch
    that is left out, the batch and two empty dicts.

    Args:
        context: processes, and how they share the model.
        model: whose buffers keep no trace of a step that is made for its dicts alone.
        update: what is joined in.
        uneven: which steps are not this process's own.
        step: runs the user's step, and exchanges gradients when its loss is walked back.
        plain_step: runs it alone.
        after_backward: the hooks on gradients.
    """

    def __init__(
        self,
        context: PassContext,
        model: Any,
        update: Update,
        uneven: UnevenRanks,
        step: Step,
        plain_step: Step,
        after_backward: Sequence[Callable[..., Any]],
    ) -> None:
        self._parallel, self._is_alone = context.parallel, context.world.size == 1
        self._model, self._update, self._uneven = model, update, uneven
        self._step, self._plain_step = step, plain_step
        self._after_backward = after_backward
        self._last_dicts: tuple[Any, ...] = ()

    @property
    def needs_dicts(self) -> bool:
        """Whether the dicts of a step are needed after it."""
        return self._uneven.last_own is not None

    def keep(self, _epoch: int, iteration: int, *dicts: Any) -> None:
        """Keep the dicts of the last step of this process, as they are before the user's hooks."""
        if iteration == self._uneven.last_own:
            self._last_dicts = tuple(copy.copy(each) for each in dicts)

    def add_nothing(self, iteration: int, data_dict: Any) -> None:
        """Walk a loss back that teaches nothing, in a step for which there is no batch left."""
        self._update.is_joining = True
        self._update.backward(self._loss(iteration, data_dict), 0)
        self._update.exchange()

    def _loss(self, iteration: int, data_dict: Any) -> torch.Tensor:
        if not self._uneven.repeats:
            return self._parallel.zero_loss()
        try:
            loss, *results = self._step(iteration, data_dict)
        except SkipBatch:  # as it was when it was this process's own
            return self._parallel.zero_loss()
        self._last_dicts = (data_dict, *results)
        return loss

    def act_on_gradients(self, epoch: int, iteration: int, data_dict: Any) -> None:
        """Call the hooks on the gradients of an update that is complete, unless there are none."""
        if not self._after_backward or (self._is_alone and not self._update.learns):
            return
        if not self._last_dicts and self._uneven.is_joining(iteration):
            self._make_last_again(data_dict)
        for act in self._after_backward:
            act(epoch, iteration, *(self._last_dicts or (data_dict, {}, {})))

    def _make_last_again(self, data_dict: Any) -> None:
        """Make the dicts of the last own step after a resume in the midst of joining; no buffer keeps a trace of it."""
        buffers = [(buffer, buffer.clone()) for buffer in self._model.buffers()]
        with contextlib.suppress(SkipBatch):
            _, *results = self._plain_step(self._uneven.last_own or 1, data_dict)
            self._last_dicts = (data_dict, *results)
        for buffer, before in buffers:
            buffer.copy_(before)
