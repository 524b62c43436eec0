"""Gradients, weights and updates of each module in a few numbers, on log lines alone."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import nn

from vision3d_engine.distributed.parallel.base import Parallel
from vision3d_engine.distributed.parallel.shards import local_part
from vision3d_engine.distributed.world import World
from vision3d_engine.endpoints.capture import without_wrappers
from vision3d_engine.loop.counters import Counters
from vision3d_engine.loop.progress import Progress
from vision3d_engine.loop.trained import Trained
from vision3d_engine.optim.named_optimizers import optimizers_of
from vision3d_engine.update.held import trained
from vision3d_engine.update.parameter_sums import squares, sums_by_module, zero_rows

# Rows of their weights are entries of a table, or inputs.
_NO_UNITS = (nn.Embedding, nn.EmbeddingBag, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class ParameterStatistics:
    """Looks at the last update before each log line (``trainer.parameter_statistics``); others cost next to nothing.

    That update may be put off, when its batch is skipped, or may be another optimizer's. An optimizer whose step
    was not looked at there is in its first one behind the line, as in the first one of the run.

    Computed on the device around the step of each optimizer, read in the one copy of the log line, for each module
    that holds parameters:

    - ``grad_norm``: the 2-norm of its gradient as the update has it before it is clipped: of the whole window and all
      processes, in the unit of the loss.
    - ``weight_norm``: that of its weights before the update.
    - ``update_ratio``: the 2-norm of what the optimizer's step has changed, over ``weight_norm``; about 1e-3 is usual
      (Karpathy, CS231n, "Ratio of weights:updates").
    - ``dead_units``: the share of units, which are rows of a weight, without any gradient in the whole window: a ReLU
      behind them was off for every sample (Lu et al., "Dying ReLU and initialization", 2020).

    Args:
        settings: the settings ``trainer.*``.
        world: the processes; the main one's numbers are written.
        parallel: how they share the model: where parameters are spread, sums are made over all processes.
        progress: the counters.
        counters: what rows say of them.
        writers: where numbers go.
    """

    def __init__(
        self, settings: Any, world: World, parallel: Parallel, *, progress: Progress, counters: Counters, writers: Any
    ) -> None:
        self._is_on = settings.parameter_statistics
        self._every, self._window = settings.log_steps, settings.grad_acc_steps
        self._world, self._parallel = world, parallel
        self._progress, self._counters, self._writers = progress, counters, writers
        self._trainer: Any = None
        self._names: dict[torch.Tensor, str] = {}
        self._sums: dict[tuple[str, int], tuple[list[str], torch.Tensor]] = {}
        self._rows: dict[str, float] = {}
        self._on_time, self._owed = set[int](), set[int]()
        self._updates = 0

    def observers(self, trainer: Any) -> Iterator["ParameterStatistics"]:
        """Yield what looks at the updates of a pass, if anything is asked for."""
        if self._is_on and (self._world.is_main or self._is_spread):
            if self._trainer is None:
                self._owed = _keys(trainer)
            self._trainer, self._names = trainer, {}
            yield self

    @property
    def _is_spread(self) -> bool:
        return self._parallel.store is not None

    @property
    def is_due(self) -> bool:
        """Whether no further update comes before the next log line, or that before the last one was missed."""
        return bool(self._owed) or self._is_last

    @property
    def _is_last(self) -> bool:
        return -self._progress.iteration % self._every < self._window

    @contextmanager
    def stepping(self, optimizer: Any) -> Iterator[None]:
        """Compute what a step of an optimizer finds and changes; one exchange where parameters are spread."""
        is_meant = self._is_last or id(optimizer) in self._owed
        named = self._named(optimizer) if is_meant else {}
        gradients = {name: local_part(each.grad) for name, each in named.items() if each.grad is not None}
        if not gradients:
            yield
            return
        (self._on_time.add if self._is_last else self._owed.discard)(id(optimizer))
        before = [local_part(each.detach()).clone() for each in named.values()]
        found = {"grad_norm": (list(gradients), squares([*gradients.values()]))}
        found["weight_norm"] = list(named), (like := squares(before))
        if units := self._units(gradients, named):
            found["dead_units"] = list(units), zero_rows(units.values(), like)
        yield
        for old, now in zip(before, named.values(), strict=True):
            old.sub_(local_part(now.detach()))
        found["update_ratio"] = list(named), squares(before)
        for kind, (names, sums) in found.items():
            self._sums[kind, id(optimizer)] = names, self._over_all(sums)

    def _named(self, optimizer: Any) -> dict[str, torch.Tensor]:
        """Return the parameters of an optimizer that are trained, by name; names are looked up when one is new."""
        own = trained(optimizer)
        if not self._names.keys() >= set(own):
            found = Trained(self._trainer).parameters().items()
            self._names = {each: without_wrappers(name) for name, each in found}
        return {self._names[each]: each for each in own}

    def _units(self, gradients: Mapping[str, torch.Tensor], named: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """Return the gradients whose rows are those of units, and note how many rows there are."""
        tables = {id(module.weight) for module in self._trainer.model.modules() if isinstance(module, _NO_UNITS)}
        weights = {name: each for name, each in named.items() if name.rpartition(".")[2].startswith("weight")}
        kept = [name for name, each in weights.items() if each.dim() > 1 and id(each) not in tables]
        found = {name: gradients[name] for name in kept if name in gradients and not gradients[name].is_sparse}
        self._rows |= {name: len(named[name]) for name in found}
        return found

    def _over_all(self, sums: torch.Tensor) -> torch.Tensor:
        return self._world.mean(sums) * self._world.size if self._is_spread else sums

    # ------------------------------------------------------------------------------------------- on a log line

    def probe(self) -> list[torch.Tensor]:
        """Return the numbers on the device that the log line at hand is to read."""
        return [sums for _, sums in self._sums.values()]

    def tell(self, numbers: Sequence[float]) -> None:
        """Write what was read of `probe`."""
        read, found = iter(numbers), {}
        for (kind, _), (names, _) in self._sums.items():
            found.setdefault(kind, {}).update(zip(names, islice(read, len(names)), strict=True))
        updates, self._updates = self._updates, self._progress.updates
        if self._trainer is not None and self._updates > updates:
            self._owed = _keys(self._trainer) - self._on_time
        self._on_time.clear()
        self._sums.clear()
        if found:
            step, position = self._counters.step_of("train"), self._counters.row()
            for kind, values in self._figures({kind: sums_by_module(each) for kind, each in found.items()}).items():
                self._writers.scalars(kind, values, step, iteration=self._progress.iteration, **position)

    def _figures(self, sums: Mapping[str, dict[str, float]]) -> dict[str, dict[str, float]]:
        """Return the numbers of each module, by kind."""
        found = {kind: {name: math.sqrt(each) for name, each in sums[kind].items()} for kind in sums}
        norms, changes = found["weight_norm"], found["update_ratio"]
        found["update_ratio"] = {name: change / norms[name] for name, change in changes.items() if norms[name]}
        if dead := sums.get("dead_units"):
            rows = sums_by_module(self._rows)
            found["dead_units"] = {name: count / rows[name] for name, count in dead.items()}
        return found


def _keys(trainer: Any) -> set[int]:
    """Return what names the optimizers of a trainer here."""
    return {id(each) for each in optimizers_of(trainer.optimizer).values()}
