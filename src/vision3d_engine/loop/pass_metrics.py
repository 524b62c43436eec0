"""Registered metrics over whole sets: one state for each pass over one set, merged over processes at its end."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from vision3d_engine.core.errors import ResultError, listed
from vision3d_engine.core.portable import has_state
from vision3d_engine.distributed.world import World
from vision3d_engine.logs.logger import Logger
from vision3d_engine.logs.number_table import number_table
from vision3d_engine.loop.progress import Progress
from vision3d_engine.loop.uneven_ranks import UnevenRanks
from vision3d_engine.metrics.adapters import MetricState, flat_numbers, merged, state_of

Mark = Mapping[str, Any]
Iteration = Callable[[int, Any], None]


class PassMetrics:
    """The states of all registered metrics in one pass over one set; a metric without an update has none.

    Args:
        registered: the script's metrics by name, which stay as they are.
        world: the processes.
        logger: is told what cannot be done.
        said: what has been told in this run.
    """

    def __init__(self, registered: Mapping[str, Any], world: World, logger: Logger, said: set[str]) -> None:
        self._registered, self._world, self._logger, self._said = registered, world, logger, said
        self._states: dict[str, MetricState] = {}
        self._counts = True
        self._whole: dict[str, MetricState] | None = None
        self._mark: Mark = {}
        self._kept: Mark = {}
        self._rows: dict[str, tuple[str, str]] = {}

    def update(self, name: str, *args: Any, **kwargs: Any) -> None:
        """Take a batch into a metric, unless the step at hand does not count."""
        if self._counts:
            self._at(name).update(*args, **kwargs)

    def _at(self, name: str) -> MetricState:
        if name not in self._states:
            self._states[name] = state_of(self._registered[name])
        return self._states[name]

    # ------------------------------------------------------------------------------------------- steps

    def around(self, iterate: Iteration, progress: Progress, uneven: UnevenRanks) -> Iteration:
        """Return an iteration of training that begins with a mark, and counts if it has a batch of its own.

        Without registered metrics it is the one that is given.
        """
        if not self._registered:
            return iterate

        def marked(iteration: int, data_dict: Any) -> None:
            self.begin_step(iteration <= uneven.own_until, follows_update=progress.trained == iteration - 1)
            iterate(iteration, data_dict)

        return marked

    def begin_step(self, counts: bool = True, *, follows_update: bool = False) -> Mark:
        """Return where `undo` comes back to; it costs no copy.

        Args:
            counts: whether the step has a batch of its own; one that repeats a batch is taken in by no metric.
            follows_update: whether `roll_back` comes back to here.
        """
        self._counts = counts
        self._mark = {name: state.mark() for name, state in self._states.items()}
        if follows_update:
            self._kept = self._mark
        return self._mark

    def undo(self, mark: Mark | None = None) -> None:
        """Come back to where a step began that is left out, by default the latest, and take in no more of it.

        What is none of this engine's metrics counts what it was told before; that is said once.
        """
        self._counts, mark = False, self._mark if mark is None else mark
        for name, state in list(self._states.items()):
            if not state.can_undo:
                self._tell_counted(name, state, mark, _COUNTED)
            elif name in mark:
                state.undo(mark[name])
            else:
                del self._states[name]

    def _tell_counted(self, name: str, state: MetricState, mark: Mark, message: str) -> None:
        if name not in mark or state.has_counted_since(mark[name]):
            self._tell(message.format(name, type(state.metric).__name__))

    def undo_unless_finite(self, loss: Any) -> None:
        """Come back to where the step began if its loss is not finite, which is not read from its device."""
        if not isinstance(loss, torch.Tensor):
            return
        mark, is_finite = self._mark, loss.detach().isfinite().all()
        for name, state in self._states.items():
            if state.can_undo:
                state.undo_unless(is_finite, mark.get(name) or state_of(self._registered[name]).mark())
            else:
                self._tell_counted(name, state, mark, _NOT_FINITE)

    def roll_back(self) -> None:
        """Come back to the last update, when a step behind it has failed; what cannot is said."""
        for name, state in list(self._states.items()):
            if not state.can_undo:
                self._tell_counted(name, state, self._kept, _TWICE)
            elif name in self._kept:
                state.undo(self._kept[name])
            else:
                del self._states[name]

    def _tell(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            self._logger.warn(message)

    # ------------------------------------------------------------------------------------------- saving

    @property
    def names(self) -> list[str]:
        """The names of all registered metrics."""
        return list(self._registered)

    @property
    def unsaved(self) -> list[str]:
        """The names of those whose state nothing can hold."""
        return [name for name, metric in self._registered.items() if not has_state(metric)]

    def state_dict(self) -> dict[str, Any]:
        """Return the states of this process by the names of their metrics, as data on the host."""
        for name, state in self._states.items():
            if not state.has_state:
                self._tell(_UNSAVED.format(name, type(state.metric).__name__))
        return {name: state.state_dict() for name, state in self._states.items() if state.has_state}

    def add_state(self, saved: Mapping[str, Any]) -> None:
        """Take in what a process has saved, beside what there is; a metric that nobody registers now is left out."""
        for name in (each for each in self._registered if each in saved):
            other = state_of(self._registered[name])
            other.load_state_dict(saved[name])
            if name in self._states:
                self._states[name].merge([other.metric])
            else:
                self._states[name] = other

    # ------------------------------------------------------------------------------------------- the end

    def whole(self, name: str) -> MetricState:
        """Return a metric over all processes, empty if none has updated it; the first call waits for all of them."""
        return self._over_processes().get(name) or state_of(self._registered[name])

    def has(self, name: str) -> bool:
        """Tell whether any process has updated a metric; the first call waits for all of them."""
        return name in self._over_processes()

    def _over_processes(self) -> dict[str, MetricState]:
        """Return the metrics that any process has updated, over all of them; exchanged once."""
        if self._whole is None:
            is_alone = self._world.size == 1 or not self._registered
            self._whole = self._states if is_alone else self._exchanged()
        return self._whole

    def _exchanged(self) -> dict[str, MetricState]:
        gathered = self._world.gather({name: state.packed() for name, state in self._states.items()})
        parts = {name: [each[name] for each in gathered if name in each] for name in self._registered}
        return {name: merged(self._registered[name], packed) for name, packed in parts.items() if packed}

    def numbers(self) -> dict[str, float]:
        """Return the numbers of all metrics that a process has updated, by their keys; the same on all processes.

        To be called by all of them, once the pass is over. Those of a `WholeSetMetric` are the same digits however the
        set was shared out where its sums are counts, else up to their rounding; lists are put together in rank order,
        which is not that of the data set.
        """
        found: dict[str, float] = {}
        for name, whole in self._over_processes().items():
            numbers, rows, left_out = flat_numbers(name, whole.compute())
            found |= numbers
            self._rows |= rows
            if left_out:
                self._tell(_LEFT_OUT.format(listed(left_out), name))
        return found

    def beside(self, means: dict[str, Any]) -> dict[str, Any]:
        """Return means of steps with the numbers of all metrics.

        Raises:
            ResultError: when a step has returned a key of theirs.
        """
        numbers = self.numbers()
        if both := means.keys() & numbers.keys():
            key = min(both)
            message = f"'{key}' is a number of the metric '{self._owner_of(key)}' and a key of the step's results"
            raise ResultError(f"{message}; return it under another key, or register the metric by another name")
        return means | numbers

    def _owner_of(self, key: str) -> str:
        return max((name for name in self._registered if key == name or key.startswith(f"{name}/")), key=len)

    def in_line(self, numbers: Mapping[str, Any]) -> dict[str, Any]:
        """Return those numbers that are in a log line: all but those of single classes."""
        return {key: number for key, number in numbers.items() if key not in self._rows}

    def table(self, numbers: Mapping[str, Any]) -> str:
        """Return those of single classes as a table that follows a log line; empty where there are none."""
        table = number_table({place: numbers[key] for key, place in self._rows.items() if key in numbers})
        return f"\n{table}" if table else ""


_COUNTED = (
    "a batch is left out which the metric '{}' ({}) has counted, and cannot take back: call its update last in the "
    "step. This is said once"
)
_TWICE = (
    "the metric '{}' ({}) has counted batches behind the last update, and cannot take them back: if run() goes on from "
    "there, its number of this epoch has them twice, as only metrics of vision3d_engine.metrics do not"
)
_NOT_FINITE = (
    "the metric '{}' ({}) counts batches whose loss is not finite, which means leave out: only metrics of "
    "vision3d_engine.metrics take them back. This is said once"
)
_UNSAVED = (
    "the metric '{}' ({}) has no state_dict and load_state_dict, so a run that is resumed in the midst of a training "
    "epoch has its number over the rest of that epoch alone, and a test that is killed cannot be gone on with: give it "
    "both"
)
_LEFT_OUT = (
    "{} of the metric '{}' has too many numbers for summary, log and curves: draw or write it in after_val_epoch and "
    "the like, where the handle's compute() returns it. This is said once"
)
