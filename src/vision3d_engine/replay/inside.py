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

from vision3d_engine.core.tree import leaves
from vision3d_engine.distributed.parallel.shards import local_part
from vision3d_engine.endpoints.capture import named_modules


@dataclass(frozen=True)
class Figures:
    """A tensor in a few numbers; all but the count are of its finite values, NaN where there are none."""

    shape: tuple[int, ...]
    mean: float
    std: float
    least: float
    most: float
    nonfinite: int

    @classmethod
    def of(cls, tensor: torch.Tensor) -> "Figures":
        """Return those of a tensor; waits for the device."""
        values = tensor.detach().double() if not tensor.is_complex() else tensor.detach().abs().double()
        finite = values if all_finite(values) else values[values.isfinite()]
        count = values.numel() - finite.numel()
        if not finite.numel():
            return cls(tuple(tensor.shape), math.nan, math.nan, math.nan, math.nan, count)
        std, mean = torch.std_mean(finite, correction=0)
        least, most = torch.aminmax(finite)
        return cls(tuple(tensor.shape), mean.item(), std.item(), least.item(), most.item(), count)


def all_finite(tensor: torch.Tensor) -> bool:
    """Tell whether all numbers of a tensor are finite; waits for the device.

    A sum is quicker than a look at each, and says so unless it is infinite itself.
    """
    return bool(tensor.sum().isfinite()) or bool(torch.isfinite(tensor).all())


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
        """The module that runs now; empty outside of all."""
        return self._running[-1] if self._running else ""

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch during a block."""
        with ExitStack() as stack:
            for name, module in named_modules(self._model).items():
                stack.enter_context(module.register_forward_pre_hook(partial(self._enter, name)))
                stack.enter_context(module.register_forward_hook(partial(self._leave, name), always_call=True))
            yield
        self._running.clear()

    def _enter(self, name: str, *_: Any) -> None:
        self._running.append(name)

    def _leave(self, name: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
        self._running.pop()
        self._calls[name] += 1
        call = f"{name}#{self._calls[name]}" if self._calls[name] > 1 else name
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
            self.parameters[name] = Figures.of(local_part(parameter.grad))

    def look_at_parameters(self) -> None:
        """Take the gradients of the parameters as they are now, and put those of activations in the order of these."""
        self.gradients = {key: self.gradients[key] for key in self.activations if key in self.gradients}
        for name, each in self._model.named_parameters():
            self._take_gradient(name, each)


def _tensors_of(output: Any) -> Mapping[str, torch.Tensor]:
    found = {path: leaf for path, leaf in leaves(output) if isinstance(leaf, torch.Tensor)}
    return {path: leaf for path, leaf in found.items() if leaf.is_floating_point() or leaf.is_complex()}
