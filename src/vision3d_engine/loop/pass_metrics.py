"""Registered metrics over whole sets: one state for each pass over one set, merged over processes at its end."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from vision3d_engine.core.errors import RegistrationError, ResultError, did_you_mean, listed
from vision3d_engine.distributed.world import World
from vision3d_engine.logs.logger import Logger
from vision3d_engine.logs.number_table import number_table
from vision3d_engine.metrics.adapters import MetricState, check_metric, flat_numbers, merged, state_of

Mark = Mapping[str, Any]


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

    def merged(self, name: str) -> Any:
        """Return a metric over all processes, empty if none has updated it; the first call waits for all of them."""
        whole = self._over_processes().get(name)
        return (state_of(self._registered[name]) if whole is None else whole).metric

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
            numbers, rows = flat_numbers(name, whole.compute())
            found |= numbers
            self._rows |= rows
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


class MetricHandle:
    """What a script has of a metric that it has registered.

    Within a pass (training, validation on a set, test) it takes batches into the state of that pass alone. In a loop of
    the script's own it is the metric itself, of this process, to be reset and computed by that loop.

    Args:
        name: of the metric.
        metrics: all that are registered.
    """

    def __init__(self, name: str, metrics: "Metrics") -> None:
        self._name, self._metrics = name, metrics

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Take in a batch: what the metric's own ``update`` takes. It adds no wait for the device."""
        if (at_hand := self._metrics.at_hand) is None:
            self._metrics.registered[self._name].update(*args, **kwargs)
        else:
            at_hand.update(self._name, *args, **kwargs)

    def compute(self) -> Any:
        """Return what the registered object has from loops of the script's own; passes have their numbers apart."""
        return self._metrics.registered[self._name].compute()

    def reset(self) -> None:
        """Let the registered object forget what loops of the script's own have told it."""
        self._metrics.registered[self._name].reset()

    def merged(self, set_name: str | None = None) -> Any:
        """Return the metric over all processes, as of the end of the latest pass; to draw its matrix, or the like.

        For ``after_train_epoch``, ``after_val_epoch`` and ``after_test_epoch``, on any process.

        Args:
            set_name: of a validation set, where there are several; None for the pass that ended last.

        Raises:
            RegistrationError: when no pass has ended, or none over a set of this name.
        """
        return self._metrics.closed(set_name).merged(self._name)


class Metrics:
    """All metrics that a trainer or tester has registered.

    Args:
        world: the processes.
        logger: is told what cannot be done.

    Attributes:
        registered: the script's objects by name.
        at_hand: the states of the pass that is walked; None outside of all.
    """

    def __init__(self, world: World, logger: Logger) -> None:
        self._world, self._logger = world, logger
        self.registered: dict[str, Any] = {}
        self.at_hand: PassMetrics | None = None
        self._closed: dict[str | None, PassMetrics] = {}
        self._said: set[str] = set()

    def register(self, name: str, metric: Any) -> MetricHandle:
        """Register a metric, and return its handle.

        Raises:
            RegistrationError: for what is no metric, and a name that is taken or is none.
        """
        if not isinstance(name, str) or not name or "/" in name:
            message = f"register_metric got the name {name!r}; expected a text without '/', which parts name and key"
            raise RegistrationError(message)
        if name in self.registered:
            raise RegistrationError(f"register_metric('{name}'): this name is taken; choose another one")
        check_metric(name, metric, self._world.size)
        self.registered[name] = metric
        return MetricHandle(name, self)

    def new_pass(self) -> PassMetrics:
        """Return empty states for a pass."""
        return PassMetrics(self.registered, self._world, self._logger, self._said)

    @contextmanager
    def walking(self, states: PassMetrics | None, set_name: str | None = None) -> Iterator[None]:
        """Let handles take batches into the states of a pass while a block runs; then those of the pass before again.

        Args:
            states: of the pass; None for the registered objects themselves.
            set_name: of several validation sets.
        """
        before, self.at_hand = self.at_hand, states
        try:
            yield
        finally:
            self.at_hand = before
        if states is not None:
            self._closed |= {None: states, set_name: states}

    def closed(self, set_name: str | None) -> PassMetrics:
        """Return the states of the pass that ended last, over a set."""
        if set_name not in self._closed:
            known = [name for name in self._closed if name is not None]
            where = "" if set_name is None else f" over a validation set '{set_name}'{did_you_mean(set_name, known)}"
            message = (
                f"merged() finds no pass{where} that has ended (sets: {listed(known)}); call it in after_val_epoch, "
            )
            raise RegistrationError(message + "after_test_epoch or after_train_epoch")
        return self._closed[set_name]


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
    "epoch has its number over the rest of that epoch alone: give it both"
)
