"""What a trainer trains: its model, what else its optimizer holds, and what further optimizers of the script hold."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from vision3d_engine.distributed.parallel.wrapping import trained_parameters
from vision3d_engine.optim.named_optimizers import optimizers_of

_LOOKED_AT = (nn.Module, torch.Tensor, torch.optim.Optimizer)


class Trained:
    """What requires grad and is trained, and the optimizers that train it, as they are when a pass begins.

    Optimizers are found among the attributes of the trainer and of the hooks that were added to it.

    Args:
        trainer: whose model, optimizer and attributes count.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._optimizers = dict(_optimizers(trainer))

    def groups(self) -> list[int]:
        """Return how many parameters each group of each optimizer has."""
        return [len(group["params"]) for optimizer in self._optimizers.values() for group in optimizer.param_groups]

    def optimizers(self) -> list[Any]:
        """Return the optimizers, those that are registered by name one by one."""
        return [each for found in self._optimizers.values() for each in optimizers_of(found).values()]

    def parameters(self) -> dict[str, torch.Tensor]:
        """Return them by name: the model's parameters under their own, others as the script holds them."""
        found = trained_parameters(self._trainer.model, None)
        known, names = {id(parameter) for parameter in found.values()}, _names(self._trainer)
        for place, parameter in self._held():
            if parameter.requires_grad and id(parameter) not in known:
                known.add(id(parameter))
                found[names.get(id(parameter), place)] = parameter
        return found

    def _held(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield each parameter of each optimizer, with its place."""
        for name, optimizer in self._optimizers.items():
            for number, group in enumerate(optimizer.param_groups):
                for place, parameter in enumerate(group["params"]):
                    yield f"{name}.param_groups[{number}]['params'][{place}]", parameter


def _optimizers(trainer: Any) -> Iterator[tuple[str, Any]]:
    yield "self.optimizer", trainer.optimizer
    for name, part in _attributes(trainer):
        if isinstance(part, torch.optim.Optimizer) and part is not trainer.optimizer:
            yield name, part


def _names(trainer: Any) -> dict[int, str]:
    """Return what a script calls its parameters, by their identity."""
    names: dict[int, str] = {}
    for name, part in _attributes(trainer):
        if isinstance(part, nn.Module):
            names |= {id(each): f"{name}.{own}" for own, each in part.named_parameters()}
        elif isinstance(part, torch.Tensor):
            names[id(part)] = name
    return names


def _attributes(trainer: Any) -> Iterator[tuple[str, Any]]:
    """Yield the attributes of the trainer and of its hooks by name, and the members of those that are containers."""
    owners = {"self": trainer} | {type(hook).__name__: hook for hook in trainer._hooks.added}  # noqa: SLF001  the engine's own
    for owner, holder in owners.items():
        for name, part in getattr(holder, "__dict__", {}).items():
            yield f"{owner}.{name}", part
            members = dict(enumerate(part)) if type(part) in (list, tuple) else part  # others may load what they yield
            if isinstance(members, dict):
                yield from (
                    (f"{owner}.{name}[{key!r}]", member)
                    for key, member in members.items()
                    if isinstance(member, _LOOKED_AT)  # others may be many, with keys of any kind
                )
