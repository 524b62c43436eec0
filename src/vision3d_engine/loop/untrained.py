"""Parameters that the first epoch has left as they were, which is seldom meant."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.parameter import is_lazy

from vision3d_engine.core.errors import shortened
from vision3d_engine.distributed.parallel.base import Parallel
from vision3d_engine.distributed.parallel.replica_check import checksum
from vision3d_engine.distributed.parallel.shards import local_part
from vision3d_engine.distributed.world import World
from vision3d_engine.endpoints.capture import without_wrappers
from vision3d_engine.loop.progress import Progress
from vision3d_engine.loop.trained import Trained
from vision3d_engine.update.held import held

_MOST_NAMES = 5
_NO_GRADIENT = "without a gradient, so not used in the forward pass, or detached"
_NO_OPTIMIZER = "with a gradient, but in no optimizer"
_NO_RATE = "with a learning rate of 0"
_NO_EFFECT = "with gradients of zeros, or too small for their type"
_NO_STEP = "in an optimizer whose step never came, or changed nothing"
# For how many epochs parameters may rest for a reason before it is told: a rate of 0 may be a warm-up. Those of an
# optimizer whose turn may still come are told at the end of training.
_LONGEST = 2
_REST: Mapping[str, float] = {_NO_RATE: _LONGEST, _NO_STEP: math.inf}


class UntrainedParameters:
    """Names, once, the parameters that require grad and have not changed since the first epoch of a run began.

    Their bits are compared by a checksum at the beginning and the end of that epoch, read once. Whether they had a
    gradient is looked at in its updates 1, 2, 4, 8, ..., on the host. What may only rest is looked at again: parameters
    with a learning rate of 0 behind the second epoch, and those of one of several optimizers whose turn has not come at
    the end of training. Not judged are an epoch that a resume goes on with, that was cut or whose updates were all
    skipped, and parameters that the model gets or loses in it, but for new ones that no optimizer holds.

    Args:
        world: the processes.
        parallel: how they share the model; what changes on any of them has changed.
        progress: the counters.
        warn: says what was found.
    """

    def __init__(self, world: World, parallel: Parallel, progress: Progress, warn: Callable[[str], object]) -> None:
        self._world, self._parallel, self._progress, self._warn = world, parallel, progress, warn
        self._trainer: Any = None
        self._parameters: dict[str, torch.Tensor] = {}
        self._before: dict[str, torch.Tensor] | None = None
        self._with_gradient: set[int] = set()
        self._rated: dict[int, bool] = {}
        self._epochs = 0

    def observers(self, trainer: Any) -> Iterator["UntrainedParameters"]:
        """Yield what looks at the updates of a pass that begins, if it is one of the first epochs."""
        progress, epochs = self._progress, self._epochs
        if progress.epoch == 1 and progress.trained == 0 and not progress.is_trained:
            self._trainer, self._epochs = trainer, 0
            self._parameters = {name: each for name, each in _trained(trainer).items() if _has_bits(each)}
            self._before = self._checksums()
        elif progress.epoch != epochs + 1:  # another run's, or one that was cut
            self._forget()
        if self._before is not None and self._epochs < _LONGEST:
            yield self

    def _checksums(self) -> dict[str, torch.Tensor]:
        return {name: checksum([local_part(each)], self._world.device) for name, each in self._parameters.items()}

    def _forget(self) -> None:
        self._trainer, self._before, self._parameters = None, None, {}
        self._with_gradient.clear()
        self._rated.clear()

    @property
    def is_due(self) -> bool:
        """Whether to look at the update at hand."""
        number = self._progress.updates + 1
        return not number & (number - 1)

    @contextmanager
    def stepping(self, optimizer: Any) -> Iterator[None]:
        """Note which parameters have a gradient, and which a learning rate."""
        self._note_gradients()
        for group in optimizer.param_groups:
            rate = group.get("lr", 1.0)
            has_rate = isinstance(rate, torch.Tensor) or rate != 0  # one on the device is not read
            self._rated |= {id(each): has_rate or self._rated.get(id(each), False) for each in group["params"]}
        yield

    def _note_gradients(self) -> None:
        self._with_gradient |= {id(each) for each in self._parameters.values() if each.grad is not None}

    # ------------------------------------------------------------------------------------------- at the end

    def tell(self) -> None:
        """Say behind one of the first epochs which parameters have not changed; waits for the device then."""
        self._epochs = self._progress.epoch
        if self._before is not None and self._epochs <= _LONGEST:
            self._judge(self._before, _REST)

    def close(self) -> None:
        """Say at the end of training what has rested until now; waits for the device if there is something."""
        if self._before is not None and self._epochs:
            self._judge(self._before, {})
        self._forget()

    def _judge(self, before: Mapping[str, torch.Tensor], rest: Mapping[str, float]) -> None:
        """Say which parameters have not changed; those that may rest for longer are looked at again later."""
        if not self._rated:  # no optimizer has made a step
            self._forget()
            return
        self._note_gradients()  # those that nobody clears are still there
        found = self._by_reason({*self._parallel.gathered(self._changed(before))})
        late = {reason: names for reason, names in found.items() if rest.get(reason, 1) > self._epochs}
        if (now := {reason: names for reason, names in found.items() if reason not in late}) and self._world.is_main:
            self._warn(self._text(now))
        self._parameters = {name: self._parameters[name] for names in late.values() for name in names}

    def _changed(self, before: Mapping[str, torch.Tensor]) -> list[str]:
        now = self._checksums()
        if not now:
            return []
        has_changed = (torch.stack([*now.values()]) != torch.stack([before[name] for name in now])).tolist()
        return [name for name, is_so in zip(now, has_changed, strict=True) if is_so]

    def _by_reason(self, changed: set[str]) -> dict[str, list[str]]:
        """Return names of parameters by why they have not changed."""
        now, found = _trained(self._trainer), defaultdict[str, list[str]](list)
        own = [{id(each) for each in held(optimizer)} for optimizer in Trained(self._trainer).optimizers()]
        live = {id(self._parameters[name]) for name in changed} | self._with_gradient
        resting = set[int]().union(*(each for each in own if len(own) > 1 and not each & live))
        for name, each in self._parameters.items():
            if name not in changed and each.requires_grad and now.get(name) is each:
                found[self._reason(id(each), set().union(*own), resting)].append(name)
        if self._epochs > 1:
            return found
        new = {name: each for name, each in now.items() if self._parameters.get(name) is not each}
        found[_NO_OPTIMIZER] += [name for name, each in new.items() if _is_left_out(each, own)]
        # without any change gradients were not finite
        return {reason: names for reason, names in found.items() if names and (changed or reason == _NO_RATE)}

    def _reason(self, key: int, is_held: set[int], resting: set[int]) -> str:
        if key in resting:
            return _NO_STEP
        if key not in self._with_gradient:
            return _NO_GRADIENT
        if key not in is_held:
            return _NO_OPTIMIZER
        return _NO_EFFECT if self._rated.get(key, True) else _NO_RATE

    def _text(self, found: Mapping[str, list[str]]) -> str:
        parts = [f"{len(names)} {reason}: {shortened(names, _MOST_NAMES)}" for reason, names in found.items()]
        when = "epoch 1" if self._epochs == 1 else f"epochs 1 to {self._epochs}"
        verb = "has" if self._epochs == 1 else "have"
        return (
            f"parameters that require grad and that {when} ({self._progress.updates} updates) {verb} not changed: "
            f"{'; '.join(parts)}. Freeze what shall stay as it is: requires_grad_(False)"
        )


def _trained(trainer: Any) -> dict[str, torch.Tensor]:
    """Return what a trainer trains now, by names without those of wrappers."""
    return {without_wrappers(name): each for name, each in Trained(trainer).parameters().items()}


def _is_left_out(parameter: torch.Tensor, own: Sequence[set[int]]) -> bool:
    return parameter.grad is not None and not any(id(parameter) in each for each in own)


def _has_bits(parameter: torch.Tensor) -> bool:
    """Tell whether a parameter is a dense block of numbers; a lazy one has none before its first batch."""
    is_there = not is_lazy(parameter) and not parameter.is_meta and parameter.numel() > 0
    return is_there and parameter.layout == torch.strided
