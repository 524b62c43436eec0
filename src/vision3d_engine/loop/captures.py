"""What modules return in some training steps: for the hooks of a script, and in a few numbers for log and writers."""

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch

from vision3d_engine.core.tree import leaves
from vision3d_engine.endpoints.capture import Capture, outputs_into
from vision3d_engine.endpoints.context_manager import ContextManager
from vision3d_engine.endpoints.statistics import NAMES, finite_values, statistics
from vision3d_engine.logs.log_line import endpoint_lines
from vision3d_engine.loop.counters import Counters
from vision3d_engine.loop.feature_clouds import FeatureClouds
from vision3d_engine.loop.progress import Progress
from vision3d_engine.metrics.stopwatch import Stopwatch


@dataclass(frozen=True)
class _Figures:
    """The statistics of one captured step.

    Attributes:
        step: where they lie on the axis of the training's curves.
        position: the counters of that step.
        shapes: by name.
        numbers: vectors on the device, by name; those of gradients as ``NAME/grad``.
    """

    step: int
    position: dict[str, int]
    shapes: dict[str, tuple[int, ...]]
    numbers: dict[str, torch.Tensor]


class Captures:
    """Captures what modules return in the steps that are due; a pass without captures knows nothing of it.

    Hooks are on the modules during the forward pass of such a step alone. The main process computes statistics of what
    was captured, on the device; those of the latest captured step are read by the next log line, in its one copy.

    Args:
        endpoints: the store.
        progress: the counters.
        counters: what rows say of them.
        writers: where numbers go.
        logger: where lines go.
        is_main: whether this process writes.
        watch: takes the time that statistics, histograms and clouds cost a step.
    """

    def __init__(
        self,
        endpoints: ContextManager,
        *,
        progress: Progress,
        counters: Counters,
        writers: Any,
        logger: Any,
        is_main: bool,
        watch: Stopwatch,
    ) -> None:
        self._endpoints, self._progress, self._counters = endpoints, progress, counters
        self._writers, self._logger, self._is_main, self._watch = writers, logger, is_main, watch
        self._captures: list[Capture] = []
        self._owner: Any = None
        self._found: dict[str, Any] = {}
        self._due: dict[Capture, Mapping[str, Any]] = {}
        self._clouds = FeatureClouds(writers, logger)
        self._latest: _Figures | None = None

    @property
    def is_used(self) -> bool:
        """Whether anything is to be captured."""
        return any(capture.is_on for capture in self._captures)

    @property
    def names(self) -> list[str]:
        """What is captured how often, for messages."""
        return [str(capture) for capture in self._captures if capture.is_on]

    def add(self, capture: Capture, owner: Any) -> None:
        """Capture modules of a trainer's model.

        Raises:
            RegistrationError: when it has none of them.
        """
        capture.check(owner.model)
        self._owner = owner
        self._captures.append(capture)

    # ------------------------------------------------------------------------------------------- in a step

    def around(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """Return a step that captures what is due."""

        def run(*args: Any) -> Any:
            self._found = {}  # of a step that has failed
            due = [capture for capture in self._captures if capture.is_due(self._progress.total_steps)]
            return self._run(step, due, args) if due else step(*args)

        return run

    def _run(self, step: Callable[..., Any], due: Sequence[Capture], args: Any) -> Any:
        self._due = {each: each.modules_of(self._owner.model) for each in due}
        merged = {name: module for found in self._due.values() for name, module in found.items()}
        with outputs_into(self._endpoints, merged) as found, _uncompiled():
            returned = step(*args)
        self._found = found
        return returned

    def after_backward(self, _epoch: int, _iteration: int, data_dict: Any, output_dict: Any, *_: Any) -> None:
        """Compute the statistics of what was captured, before the hooks of a script can change it."""
        found, self._found = self._found, {}
        if found and self._is_main:
            with self._watch.part("captures"):
                self._compute(found, (data_dict, output_dict))

    def _compute(self, found: dict[str, Any], dicts: tuple[Any, ...]) -> None:
        tensors, step = _tensors_of(found), self._counters.step_of("train")
        self._latest = _Figures(
            step,
            {"iteration": self._progress.iteration, **self._counters.row()},
            {name: tuple(each.shape) for name, each in tensors.items()},
            {name: statistics(each) for name, each in _with_gradients(tensors).items()},
        )
        for capture, modules in self._due.items():
            own = _tensors_of({name: each for name, each in found.items() if name.partition("#")[0] in modules})
            self._draw(capture, own, dicts, step)

    def _draw(self, capture: Capture, tensors: dict[str, torch.Tensor], dicts: tuple[Any, ...], step: int) -> None:
        """Write histograms and clouds, as far as they are asked for; reads from the device."""
        for name, tensor in _with_gradients(tensors).items() if capture.histograms else ():
            self._writers.histograms(f"endpoints/{name}", finite_values(tensor), step)
        for name, tensor in tensors.items() if capture.clouds is not None else ():
            self._clouds.write(capture, name, tensor, dicts, step)

    # ------------------------------------------------------------------------------------------- on a log line

    def probe(self) -> list[torch.Tensor]:
        """Return the numbers on the device that the log line at hand is to read."""
        return [] if self._latest is None else list(self._latest.numbers.values())

    def tell(self, numbers: Sequence[float]) -> None:
        """Write what was read of `probe` into the log and to the writers."""
        latest, self._latest = self._latest, None
        if latest is None:
            return
        read = iter(numbers)
        by_name = {name: dict(zip(NAMES, islice(read, len(NAMES)), strict=True)) for name in latest.numbers}
        self._logger.log(endpoint_lines(latest.position, latest.shapes, by_name))
        values = {f"{name}/{key}": number for name, own in by_name.items() for key, number in own.items()}
        self._writers.scalars("endpoints", values, latest.step, **latest.position)


def _tensors_of(outputs: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return the tensors of nests by name, with the way to them inside: ``backbone['features']``."""
    found = ((name + path, leaf) for name, output in outputs.items() for path, leaf in leaves(output))
    return {name: leaf for name, leaf in found if isinstance(leaf, torch.Tensor)}


def _with_gradients(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    kept = {f"{name}/grad": each.grad for name, each in tensors.items() if each.retains_grad}
    return tensors | {name: gradient for name, gradient in kept.items() if gradient is not None}


def _uncompiled() -> AbstractContextManager[Any]:
    """Return a context in which compiled models run as they are written: torch ignores hooks that it compiled without.

    A process that has compiled nothing has not loaded the compiler, which takes a second.
    """
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
