"""What is inside of a step: what its modules return, and the gradients of that and of the parameters, in figures."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import Node

from vision3d_engine.core.tree import leaves
from vision3d_engine.endpoints.capture import named_modules
from vision3d_engine.replay.values import all_finite, looked_at, shape_of

# Under this name backward nodes hold the module that has made them.
_MODULE = "vision3d_engine_module"


@dataclass(frozen=True)
class Figures:
    """A tensor in a few numbers; all but the count are of its finite values, NaN where there are none.

    Attributes:
        nonfinite: how many are not finite; None where the tensor could not be looked at.
    """

    shape: str
    mean: float = math.nan
    std: float = math.nan
    least: float = math.nan
    most: float = math.nan
    nonfinite: int | None = None

    @classmethod
    def of(cls, tensor: torch.Tensor) -> "Figures":
        """Return those of a tensor of any layout and type; waits for the device."""
        shape = shape_of(tensor)
        return looked_at(partial(cls._of_numbers, shape), tensor, cls(shape))

    @classmethod
    def _of_numbers(cls, shape: str, numbers: torch.Tensor) -> "Figures":
        values = numbers.double() if not numbers.is_complex() else numbers.abs().double()
        finite = values if all_finite(values) else values[values.isfinite()]
        count = values.numel() - finite.numel()
        if not finite.numel():
            return cls(shape, nonfinite=count)
        std, mean = torch.std_mean(finite, correction=0)
        least, most = torch.aminmax(finite)
        return cls(shape, mean.item(), std.item(), least.item(), most.item(), count)

    @property
    def is_broken(self) -> bool:
        """Whether there are numbers, but none that is finite."""
        return bool(self.nonfinite) and math.isnan(self.mean)


class Inside:
    """Watches the modules of a model while a step runs; changes no bit of it.

    Args:
        model: the model.

    Attributes:
        is_looking: whether figures are being taken.
        activations: by module, and call of it, what it has returned.
        gradients: the gradients of that, as they were walked back.
        parameters: those of the parameters, by name.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.is_looking = False
        self.activations: dict[str, Figures] = {}
        self.gradients: dict[str, Figures] = {}
        self.parameters: dict[str, Figures] = {}
        self._running: list[str] = []
        self._calls = Counter[str]()

    @property
    def module(self) -> str:
        """The module that runs now, with the number of its call; empty outside of all."""
        return self._running[-1] if self._running else ""

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch during a block."""
        with ExitStack() as stack:
            for name, module in named_modules(self._model).items():
                stack.enter_context(module.register_forward_pre_hook(partial(self._enter, name), with_kwargs=True))
                stack.enter_context(module.register_forward_hook(self._leave, always_call=True))
            yield
        self._running.clear()

    def _enter(self, name: str, _module: nn.Module, args: Any, kwargs: Any) -> None:
        _note_module((args, kwargs), self.module)
        self._calls[name] += 1
        self._running.append(f"{name}#{self._calls[name]}" if self._calls[name] > 1 else name)

    def _leave(self, _module: nn.Module, _inputs: Any, output: Any) -> None:
        _note_module(output, self.module)
        call = self._running.pop()
        self.is_looking = True
        for path, tensor in _tensors_of(output).items():
            key = call + path
            self.activations[key] = Figures.of(tensor)
            if tensor.requires_grad:
                tensor.register_hook(partial(self._keep_gradient, key))
        self.is_looking = False

    def _keep_gradient(self, key: str, gradient: torch.Tensor) -> None:
        self.gradients[key] = Figures.of(gradient)

    @contextmanager
    def taking_gradients(self) -> Iterator[None]:
        """Take the gradients of the parameters as a block walks them back, which also uses them up."""
        with ExitStack() as stack:
            for name, each in self._model.named_parameters():
                if each.requires_grad:
                    stack.enter_context(each.register_post_accumulate_grad_hook(partial(self._take_gradient, name)))
            yield

    def _take_gradient(self, name: str, parameter: torch.Tensor) -> None:
        if parameter.grad is not None:
            self.parameters[name] = Figures.of(parameter.grad)

    def look_at_parameters(self) -> None:
        """Take the gradients of the parameters as they are now, and put those of activations in the order of these."""
        self.gradients = {key: self.gradients[key] for key in self.activations if key in self.gradients}
        for name, each in self._model.named_parameters():
            self._take_gradient(name, each)


def _tensors_of(output: Any) -> Mapping[str, torch.Tensor]:
    found = {path: leaf for path, leaf in leaves(output) if isinstance(leaf, torch.Tensor)}
    return {path: leaf for path, leaf in found.items() if leaf.is_floating_point() or leaf.is_complex()}


def _note_module(nest: Any, module: str) -> None:
    """Note which module has made the backward nodes behind tensors that no other one has made before."""
    pending = [leaf.grad_fn for _, leaf in leaves(nest) if isinstance(leaf, torch.Tensor)]
    while pending:
        node = pending.pop()
        if node is not None and _MODULE not in notes_of(node):
            notes_of(node)[_MODULE] = module
            pending.extend(following for following, _ in node.next_functions)


def module_of_node(node: Node) -> str:
    """Return the module that has made a backward node, with the number of its call; empty outside of all."""
    return notes_of(node).get(_MODULE, "")


def notes_of(node: Node) -> dict[str, Any]:
    """Return what is noted of a backward node."""
    noted: Any = node.metadata  # which torch declares as a method
    return noted
