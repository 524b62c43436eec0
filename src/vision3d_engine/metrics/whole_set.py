"""What all metrics over a whole set share: states that are sums, added to without a wait and read once, at the end."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, Self

import numpy as np
import torch

from vision3d_engine.core.errors import CheckpointError, ResultError
from vision3d_engine.core.messages import say
from vision3d_engine.core.plain import to_plain
from vision3d_engine.core.tree import leaves
from vision3d_engine.metrics.arguments import as_tensor
from vision3d_engine.metrics.step_rows import exact_type

Array = torch.Tensor | np.ndarray

#: The class that is predicted where logits are NaN: none, and no number that a script has for a class.
NAN_CLASS = torch.iinfo(torch.int64).min


class WholeSetMetric(ABC):
    """A number over a whole set, which is no mean over its batches.

    Its state is a set of sums by name: int64 where something is counted, float64 where not (float32 on MPS, which has
    no float64). So parts of the set that were counted apart are merged by adding up: counts exactly, other sums up to
    their rounding. States stay on the CPU until an update brings tensors of another device, and from then on there.

    Its public attributes of plain data are its settings: what was counted with other ones is not taken in.
    """

    def __init__(self, **sums: torch.Tensor) -> None:
        self._sums = sums

    @abstractmethod
    def update(self, *args: Any, **kwargs: Any) -> None:
        """Take in a batch; never waits for the device."""

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """Return the numbers over all that was taken in, by name; waits for the device. NaN where nothing was."""

    def reset(self) -> None:
        """Forget all that was taken in."""
        self._sums = {name: torch.zeros_like(held) for name, held in self._sums.items()}

    def merge_state(self, others: Iterable[Self]) -> None:
        """Add what other metrics of the same kind and settings have taken in, which stay as they are."""
        states = [other.state_dict() for other in others]
        for state in states:
            self._compare(state, ResultError, "merge metrics that were made with the same arguments")
        for state in states:
            self._add(**state["sums"])

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """Return the sums, and the settings they were counted with; does not wait for the device."""
        return {"settings": self._settings(), "sums": self.sums}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Go on from the sums of a metric that was made with the same arguments."""
        self._compare(state, CheckpointError, "make the metric with the arguments that it had when it was saved")
        self._sums = {name: state["sums"][name].to(held.device, held.dtype) for name, held in self._sums.items()}

    @property
    def sums(self) -> dict[str, torch.Tensor]:
        """The sums by name, which what follows does not change."""
        return dict(self._sums)

    def undo(self, sums: Mapping[str, torch.Tensor]) -> None:
        """Go back to earlier sums of this metric."""
        self._sums = dict(sums)

    def undo_unless(self, is_right: torch.Tensor, sums: Mapping[str, torch.Tensor]) -> None:
        """Go back to earlier sums of this metric unless a flag on the device is set, which is not read.

        Sums that are still on the CPU move to the flag's device, since the flag cannot come to them without a wait.
        """
        for name, held in self._sums.items():
            now, earlier = _moved(held, is_right.device), _moved(sums[name], is_right.device)
            flag = is_right.to(now.device, non_blocking=True)
            self._sums[name] = torch.where(flag, now, earlier.to(now.device, now.dtype, non_blocking=True))

    def _settings(self) -> dict[str, Any]:
        """Return the public attributes, but for what is no plain data."""
        named = to_plain({name: value for name, value in vars(self).items() if not name.startswith("_")})
        return {name: value for name, value in named.items() if all(_is_plain(leaf) for _, leaf in leaves(value))}

    def _compare(self, state: Mapping[str, Mapping[str, Any]], error: type[Exception], advice: str) -> None:
        """Raise an error if a state has other settings, names or shapes than this metric's."""
        got, expected = _outline(state), _outline(self.state_dict())
        if wrong := [name for name in got | expected if got.get(name) != expected.get(name)]:
            each = "; ".join(f"got {name} {got.get(name)}, expected {expected.get(name)}" for name in wrong)
            raise error(f"{type(self).__name__} got a state of another metric: {each}; {advice}")

    def _add(self, **values: torch.Tensor | int) -> None:
        """Add a value to each sum that is named; one of them at least is a tensor."""
        device = next(value.device for value in values.values() if isinstance(value, torch.Tensor))
        for name, value in values.items():
            held = _moved(self._sums[name], device)
            if isinstance(value, torch.Tensor):
                value = value.to(held.device, held.dtype, non_blocking=True)  # noqa: PLW2901
            self._sums[name] = held + value  # a new tensor: what inference mode has made cannot be added to in place

    def _read(self) -> dict[str, torch.Tensor]:
        """Return the sums on the host as float64, which holds counts exactly; a share of counts is then exact too."""
        return {name: held.cpu().double() for name, held in self._sums.items()}


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


def _outline(state: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return what states must have in common to be added up: settings, names and shapes."""
    shapes = {f"shape of {name}": tuple(held.shape) for name, held in state.get("sums", {}).items()}
    return {**state.get("settings", {}), **shapes}


def _moved(held: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a sum on the device of what comes, unless it has left the CPU before."""
    if held.device.type != "cpu" or device.type == "cpu":
        return held
    dtype = exact_type(device) if held.is_floating_point() else held.dtype
    return held.to(dtype).to(device, non_blocking=True)


def exact(value: Array) -> torch.Tensor:
    """Return a tensor in the most exact floating type of its device, without gradients."""
    tensor = as_tensor(value)
    return tensor.to(exact_type(tensor.device))


def zeros(*shape: int) -> torch.Tensor:
    """Return a sum of numbers that are no counts."""
    return torch.zeros(shape, dtype=torch.float64)


def counts(*shape: int) -> torch.Tensor:
    """Return a sum of counts."""
    return torch.zeros(shape, dtype=torch.int64)


def as_classes(prediction: Array, label: Array, num_classes: int, metric: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return predicted classes and labels as int64 of one shape.

    Predictions are class indices of the shape of the labels, or logits with the classes in dimension 1: ``(N, C)`` for
    labels ``(N,)``, ``(B, C, N)`` for labels ``(B, N)``. Where logits hold NaN, `NAN_CLASS` is predicted.
    """
    prediction, label = as_tensor(prediction), as_tensor(label)
    shape = tuple(prediction.shape)
    if prediction.is_floating_point() and shape[1:2] == (num_classes,):
        shape = (shape[0], *shape[2:])
        largest, prediction = prediction.max(1)  # NaN where one of them is
        prediction.masked_fill_(largest.isnan(), NAN_CLASS)
    if prediction.is_floating_point() or label.is_floating_point() or shape != tuple(label.shape):
        message = (
            f"{metric}.update got a prediction {described(prediction)} and labels {described(label)}; expected labels "
            f"of whole numbers, and class indices of their shape or logits with {num_classes} classes in dimension 1, "
            "such as (N, C) for (N,) and (B, C, N) for (B, N); transpose or convert them"
        )
        raise ResultError(message)
    return prediction.long(), label.long()


def warn_of_nan(metric: object, points: int, of: int) -> None:
    """Say that logits were NaN, which is a wrong prediction and no reason to end a run."""
    if points:
        message = f"{type(metric).__name__}: {points} of {of} points have logits that hold NaN; they count as wrong"
        say(message, "WARNING")


def described(tensor: torch.Tensor) -> str:
    """Return shape and type of a tensor for a message."""
    return f"{tuple(tensor.shape)} {tensor.dtype}"


def tally(bins: torch.Tensor, size: int) -> torch.Tensor:
    """Return how often each bin from 0 to ``size`` - 1 is named, int64; ``bincount`` would wait for the device."""
    total = torch.zeros(size, dtype=torch.int64, device=bins.device)
    return total.scatter_add_(0, bins.flatten(), torch.ones_like(bins).flatten())


def outside(classes: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Return where class indices are negative or too large."""
    return (classes < 0) | (classes >= num_classes)
