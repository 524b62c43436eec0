"""Parameters that the first epoch has left as they were, which is seldom meant."""

from collections.abc import Callable, Iterator, Mapping
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

_MOST_NAMES = 5
_NO_GRADIENT = "without a gradient, so not used in the forward pass, or detached"
_NO_OPTIMIZER = "with a gradient, but in no optimizer"
_NO_RATE = "with a learning rate of 0"
_NO_EFFECT = "with gradients of zeros, or too small for their type"


class UntrainedParameters:
    """Names, after the first epoch of a run, the parameters that require grad and have not changed in it.

    Their bits are compared by a checksum at the beginning and the end of that epoch, read once. Whether they had a
    gradient is looked at in its updates 1, 2, 4, 8, ..., on the host. Not judged are an epoch that a resume goes on
    with, that was cut or whose updates were all skipped; and of several optimizers those whose turn comes later.

    Args:
        world: the processes.
        parallel: how they share the model; what changes on any of them has changed.
        progress: the counters.
        warn: says what was found.
    """

    def __init__(self, world: World, parallel: Parallel, progress: Progress, warn: Callable[[str], object]) -> None:
        self._world, self._parallel, self._progress, self._warn = world, parallel, progress, warn
        self._owner: Trained | None = None
        self._parameters: dict[str, torch.Tensor] = {}
        self._before: torch.Tensor | None = None
        self._with_gradient: set[int] = set()
        self._rated: dict[int, bool] = {}

    def observers(self, trainer: Any) -> Iterator["UntrainedParameters"]:
        """Yield what looks at the updates of a pass that begins, if it is the first epoch."""
        progress, self._before = self._progress, None
        if progress.epoch == 1 and progress.trained == 0 and not progress.is_trained:
            self._owner = Trained(trainer)
            found = self._owner.parameters().items()
            self._parameters = {without_wrappers(name): each for name, each in found if _has_bits(each)}
            self._before = self._checksums()
            yield self

    def _checksums(self) -> torch.Tensor | None:
        device, parts = self._world.device, map(local_part, self._parameters.values())
        sums = [checksum([part], device) for part in parts]
        return torch.stack(sums) if sums else None

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
        """Say which parameters have not changed since the pass began, if it was watched; waits for the device."""
        before, self._before = self._before, None
        if before is None or self._owner is None or not self._rated:
            return
        self._note_gradients()  # those that nobody clears are still there
        has_changed = (self._checksums() != before).tolist()
        changed = self._parallel.gathered(
            [name for name, is_so in zip(self._parameters, has_changed, strict=True) if is_so]
        )
        found = self._by_reason(self._owner, set(changed))
        if not changed:  # else gradients were not finite
            found = {reason: names for reason, names in found.items() if reason == _NO_RATE}
        if found and self._world.is_main:
            self._warn(self._text(found))
        self._owner, self._parameters = None, {}
        self._with_gradient.clear()
        self._rated.clear()

    def _by_reason(self, owner: Trained, changed: set[str]) -> dict[str, list[str]]:
        """Return names of parameters by why they have not changed."""
        held, waiting = set[int](), set[int]()
        live = {id(self._parameters[name]) for name in changed} | self._with_gradient
        for optimizer in (optimizers := owner.optimizers()):
            own = {id(each) for group in optimizer.param_groups for each in group["params"]}
            held |= own
            waiting |= own if len(optimizers) > 1 and not own & live else set()
        found: dict[str, list[str]] = {}
        for name, parameter in self._parameters.items():
            if name not in changed and parameter.requires_grad and id(parameter) not in waiting:
                found.setdefault(self._reason(id(parameter), held), []).append(name)
        return found

    def _reason(self, key: int, held: set[int]) -> str:
        if key not in self._with_gradient:
            return _NO_GRADIENT
        if key not in held:
            return _NO_OPTIMIZER
        return _NO_EFFECT if self._rated.get(key, True) else _NO_RATE

    def _text(self, found: Mapping[str, list[str]]) -> str:
        parts = [f"{len(names)} {reason}: {shortened(names, _MOST_NAMES)}" for reason, names in found.items()]
        return (
            f"parameters that require grad and that epoch 1 ({self._progress.updates} updates) has not changed: "
            f"{'; '.join(parts)}. Freeze what shall stay as it is: requires_grad_(False)"
        )


def _has_bits(parameter: torch.Tensor) -> bool:
    """Tell whether a parameter is a dense block of numbers; a lazy one has none before its first batch."""
    is_there = not is_lazy(parameter) and not parameter.is_meta and parameter.numel() > 0
    return is_there and parameter.layout == torch.strided
