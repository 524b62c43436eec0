"""The layers of a network in their order, for learning rates that fall with depth."""

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise

from torch import nn


def layer_numbers(
    parameters: Iterable[tuple[str, Sequence[nn.Module]]], pattern: str | None = None
) -> tuple[list[int], int]:
    """Return the layer of each parameter, and the number of the head, which is the highest.

    A layer is an entry of a ``Sequential`` or ``ModuleList`` that has modules of its own, a block; of nested ones the
    outermost; or what the pattern finds. Layers are numbered from 1 in the order in which the model has them. What
    comes before the first is of layer 0, what lies between two is of the one before it, and what comes after the last
    is the head.

    Args:
        parameters: in the model's order; the name of each, and the modules on its way, from the model itself on.
        pattern: is searched in the names; each text that it finds is a layer.
    """
    found = [_match(name, pattern) if pattern else _block(name, modules) for name, modules in parameters]
    numbers = {layer: number for number, layer in enumerate(dict.fromkeys(filter(None, found)), start=1)}
    head = len(numbers) + 1
    count = max((place for place, layer in enumerate(found, start=1) if layer), default=0)
    inside = [0]
    for layer in found[:count]:
        inside.append(numbers[layer] if layer else inside[-1])
    return [*inside[1:], *[head] * (len(found) - count)], head


def _block(name: str, modules: Sequence[nn.Module]) -> str | None:
    for depth, (container, entry) in enumerate(pairwise(modules), start=1):
        if isinstance(container, nn.Sequential | nn.ModuleList) and any(True for _ in entry.children()):
            return ".".join(name.split(".")[:depth])
    return None


def _match(name: str, pattern: str) -> str | None:
    found = re.search(pattern, name)
    return found.group() if found else None
