"""Metrics over whole sets as a script has them: registered by name, and updated and read by a handle."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from vision3d_engine.core.errors import RegistrationError, did_you_mean, listed
from vision3d_engine.distributed.world import World
from vision3d_engine.logs.logger import Logger
from vision3d_engine.loop.pass_metrics import PassMetrics
from vision3d_engine.metrics.adapters import MetricState, check_metric, merged, state_of, trace_of


class MetricHandle:
    """What a script has of a metric that it has registered.

    In steps `update` takes batches into the state of the pass at hand (training, validation on a set, test), which
    starts empty. When that has ended, in ``after_train_epoch``, ``after_val_epoch`` and ``after_test_epoch``, `compute`
    and `merged` are over all it has walked. A loop of the script's own begins with `reset`, and from there on until
    another pass or epoch begins they are over what `update` has taken in since.

    Args:
        name: of the metric.
        metrics: all that are registered.
    """

    def __init__(self, name: str, metrics: "Metrics") -> None:
        self._name, self._metrics = name, metrics

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Take in a batch: what the metric's own ``update`` takes. It adds no wait for the device.

        Raises:
            RegistrationError: outside of steps, unless `reset` has begun a loop of the script's own.
        """
        self._metrics.update(self._name, *args, **kwargs)

    def compute(self, set_name: str | None = None) -> Any:
        """Return what the metric's own ``compute`` returns, over all processes; see `merged`."""
        return self._metrics.whole(self._name, set_name, "compute").compute()

    def merged(self, set_name: str | None = None) -> Any:
        """Return the metric over all processes, to draw its matrix, or the like.

        When a pass has ended, on any process; in a loop of the script's own it is to be called by all of them.

        Args:
            set_name: of a validation set, where there are several.

        Raises:
            RegistrationError: in the midst of a pass; when none has ended, or none over a set of this name.
        """
        return self._metrics.whole(self._name, set_name, "merged").metric

    def reset(self) -> None:
        """Begin a loop of the script's own with an empty metric; not needed for passes, which start empty.

        Raises:
            RegistrationError: in the midst of a pass.
        """
        self._metrics.begin_own(self._name)

    def __call__(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        """Refuse to be called, since a call may mean an update, or the number of one batch."""
        message = f"the metric '{self._name}' is called; call its update(...) in a step, and its numbers are in "
        raise RegistrationError(message + "summary_dict, or compute() in after_val_epoch and the like")


class Metrics:
    """All metrics that a trainer or tester has registered.

    Args:
        world: the processes.
        logger: is told what cannot be done.

    Attributes:
        registered: the script's objects by name, which stay as they are.
    """

    def __init__(self, world: World, logger: Logger) -> None:
        self._world, self._logger = world, logger
        self.registered: dict[str, Any] = {}
        self._at_hand: PassMetrics | None = None
        self._closed: dict[str | None, PassMetrics] = {}
        self._own: dict[str, MetricState] = {}
        self._used: set[str] = set()
        self._said: set[str] = set()

    def register(self, name: str, metric: Any) -> MetricHandle:
        """Register a metric, and return its handle.

        Raises:
            RegistrationError: for what is no metric, a name that is taken or is none, and in the midst of a pass.
        """
        if self._at_hand is not None:
            message = f"register_metric('{name}') in the midst of a pass, whose first batches it would not have counted"
            raise RegistrationError(f"{message}: call it in the constructor, or between passes")
        if not isinstance(name, str) or not name or "/" in name:
            message = f"register_metric got the name {name!r}; expected a text without '/', which parts name and key"
            raise RegistrationError(message)
        if name in self.registered:
            raise RegistrationError(f"register_metric('{name}'): this name is taken; choose another one")
        check_metric(name, metric, self._world.size)
        self.registered[name] = metric
        return MetricHandle(name, self)

    def kinds(self) -> tuple[str, ...]:
        """Return names and classes of what is registered, to be compared between processes."""
        return tuple(f"{name} ({type(metric).__name__})" for name, metric in self.registered.items())

    # ------------------------------------------------------------------------------------------- passes

    def new_pass(self) -> PassMetrics:
        """Return empty states for a pass."""
        return PassMetrics(self.registered, self._world, self._logger, self._said)

    @contextmanager
    def walking(self, states: PassMetrics | None, set_name: str | None = None) -> Iterator[None]:
        """Let handles take batches into the states of a pass while a block runs; then those of the pass before again.

        Args:
            states: of the pass; None for no pass.
            set_name: of several validation sets.

        Raises:
            RegistrationError: when the script has updated a registered object instead of its handle.
        """
        before, self._at_hand = self._at_hand, states
        traces = self._traces() if states is not None else {}
        try:
            yield
        finally:
            self._at_hand = before
        if states is not None:
            self._refuse_bypassed(traces)
            self._own.clear()
            self._closed[set_name] = states

    def _traces(self) -> dict[str, Any]:
        return {name: trace_of(metric) for name, metric in self.registered.items()}

    def _refuse_bypassed(self, before: dict[str, Any]) -> None:
        now = self._traces()
        for name in (each for each in before if before[each] != now[each]):
            message = (
                f"the object that register_metric('{name}') got was updated in a pass, which counts the updates of its "
                f"handle alone: keep what register_metric returns, self.iou = self.register_metric('{name}', ...), "
            )
            raise RegistrationError(message + "and update that")

    def forget_passes(self) -> None:
        """Forget what has ended, before an epoch of training, validation or test, maybe a loop of the script's own."""
        self._closed.clear()
        self._own.clear()

    # ------------------------------------------------------------------------------------------- handles

    def update(self, name: str, *args: Any, **kwargs: Any) -> None:
        """Take a batch into the pass at hand, or what a loop of the script's own has begun."""
        self._used.add(name)
        if self._at_hand is not None:
            self._at_hand.update(name, *args, **kwargs)
        elif name in self._own:
            self._own[name].update(*args, **kwargs)
        else:
            message = f"update() of the metric '{name}' outside of a pass would count nowhere: call it in a step, or, "
            raise RegistrationError(message + "in a loop of your own, after reset()")

    def begin_own(self, name: str) -> None:
        """Begin a loop of the script's own with an empty metric."""
        if self._at_hand is not None:
            message = f"reset() of the metric '{name}' in the midst of a pass, which has started empty: leave it out. "
            raise RegistrationError(message + "To count something apart, register a metric by another name")
        self._own[name] = state_of(self.registered[name])

    def whole(self, name: str, set_name: str | None, call: str) -> MetricState:
        """Return a metric over all processes, of a loop of the script's own or of a pass that has ended."""
        if self._at_hand is not None:
            message = (
                f"{call}() of the metric '{name}' in the midst of a pass, which has its numbers when it has ended: "
            )
            raise RegistrationError(message + f"call it in {_WHEN}, or take them from summary_dict")
        if set_name is None and name in self._own:
            own = self._own[name]
            is_alone = self._world.size == 1
            return own if is_alone else merged(self.registered[name], self._world.gather(own.packed()))
        return self._ended(name, set_name, call).whole(name)

    def _ended(self, name: str, set_name: str | None, call: str) -> PassMetrics:
        """Return a pass over a set that has ended; without a name the only one."""
        if set_name is None and None not in self._closed and len(self._closed) == 1:
            return next(iter(self._closed.values()))
        if set_name in self._closed:
            return self._closed[set_name]
        known = [each for each in self._closed if each is not None]
        if set_name is None and known:
            message = f"{call}() of the metric '{name}' needs the name of a validation set: {listed(known)}"
            raise RegistrationError(message)
        where = "" if set_name is None else f" over a validation set '{set_name}'{did_you_mean(set_name, known)}"
        message = (
            f"{call}() of the metric '{name}' finds no pass{where} that has ended (sets: {listed(known)}); call it "
        )
        raise RegistrationError(message + f"in {_WHEN}, or, in a loop of your own, after reset()")

    # ------------------------------------------------------------------------------------------- what was left out

    def not_updated(self, key: str) -> str | None:
        """Return the name of the metric whose number a key would be, if no pass that has ended has updated it."""
        names = [name for name in self.registered if f"/{name}/" in f"/{key}/"]
        return next((name for name in names if not any(each.has(name) for each in self._closed.values())), None)

    def tell_unused(self) -> None:
        """Warn once of metrics that nothing has updated."""
        unused = [name for name in self.registered if name not in self._used | self._said]
        self._said |= {*unused}
        for name in unused:
            self._logger.warn(
                f"nothing has updated the metric '{name}', so it has no number: call update of the handle that "
                f"register_metric('{name}', ...) returned, in a step. This is said once"
            )


_WHEN = "after_train_epoch, after_val_epoch or after_test_epoch"
