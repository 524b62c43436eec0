"""Parameter groups as logs show them: each by a name, with its learning rate."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, count
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from vision3d_engine.core.columns import aligned
from vision3d_engine.core.named_parts import NamedParts

_COLUMNS = ("name", "parameters", "numbers", "lr", "weight decay")


def group_names(optimizer: Any) -> list[str]:
    """Return a name for each parameter group: its key ``name``, or its number; one that is taken gets a number too.

    Of several optimizers ``OPTIMIZER/NAME``, or ``OPTIMIZER`` where it has but one group.
    """
    if isinstance(optimizer, NamedParts):
        found = {name: group_names(part) for name, part in optimizer.parts.items()}
        return [name if len(own) == 1 else f"{name}/{each}" for name, own in found.items() for each in own]
    names: list[str] = []
    for number, group in enumerate(optimizer.param_groups):
        name = str(group.get("name", number))
        tries = chain([name], (f"{name}#{again}" for again in count(2)))
        names.append(next(each for each in tries if each not in names))
    return names


def learning_rates(optimizer: Any) -> dict[str, Any]:
    """Return ``lr``, the rate of the first group, and of several groups the rate of each one as ``lr/NAME``.

    They are the rates of now, whatever becomes of the groups; tensors stay on their device, so nothing waits.
    """
    groups = optimizer.param_groups
    rates = {"lr": groups[0]["lr"]}
    if len(groups) > 1:
        named = zip(group_names(optimizer), groups, strict=True)
        rates |= {f"lr/{name}": group["lr"] for name, group in named if "lr" in group}
    return {key: rate.detach().clone() if isinstance(rate, torch.Tensor) else rate for key, rate in rates.items()}


def groups_table(optimizer: Any, model: nn.Module | None = None) -> str | None:
    """Return a table of an optimizer's groups; None for a single one without a name, which needs none.

    Args:
        optimizer: has the groups; rates are those on which its schedule is based.
        model: its parameters that are in no group get a row of their own.
    """
    groups = optimizer.param_groups
    if len(groups) == 1 and "name" not in groups[0]:
        return None
    rows = [_row(*each) for each in zip(group_names(optimizer), groups, strict=True)]
    rows += _rest_row(groups, model)
    return "parameter groups:\n" + "\n".join(f"  {line}" for line in aligned([_COLUMNS, *rows]))


def _row(name: str, group: dict[str, Any]) -> tuple[str, ...]:
    values = (group.get("initial_lr", group.get("lr")), group.get("weight_decay"))
    return (name, *_sizes(group["params"]), *("-" if each is None else f"{float(each):g}" for each in values))


def _rest_row(groups: Iterable[dict[str, Any]], model: nn.Module | None) -> Iterator[tuple[str, ...]]:
    held = {id(parameter) for group in groups for parameter in group["params"]}
    rest = [] if model is None else [each for each in model.parameters() if id(each) not in held]
    if rest:
        yield ("(in no group)", *_sizes(rest), "-", "-")


def _sizes(parameters: Sequence[Any]) -> tuple[str, str]:
    """Return how many parameters there are, and how many numbers they hold; lazy ones do not know theirs yet."""
    numbers = sum(each.numel() for each in parameters if not is_lazy(each))
    return f"{len(parameters):,}", f"{numbers:,}"
