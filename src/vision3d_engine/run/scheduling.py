"""When the schedules of a run step, how long they are, and what is to be said about them."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, ReduceLROnPlateau

from vision3d_engine.core.errors import ConfigError, RegistrationError, ResultError, did_you_mean, listed
from vision3d_engine.loop.context import PassContext
from vision3d_engine.loop.uneven_ranks import UnevenRanks
from vision3d_engine.optim.named_schedules import NamedSchedules, schedules_of
from vision3d_engine.optim.schedule import Schedule, Timing, core_of, ends_after, move_on
from vision3d_engine.optim.scheduler import schedule_hint, schedule_name
from vision3d_engine.run.engine import refuse_second, with_methods

_METHODS = ("step", "state_dict", "load_state_dict")
_VALIDATION = "validation"


class Scheduling:
    """Knows when each schedule of a trainer steps: after updates, after epochs, or after validations with a metric.

    Args:
        trainer: whose schedules count, as they are at the time.
        context: settings, processes, hooks.
    """

    def __init__(self, trainer: Any, context: PassContext) -> None:
        self._trainer, self._context = trainer, context
        self._registered: dict[int, tuple[Any, Timing]] = {}

    # ------------------------------------------------------------------------------------------- registration

    def register(self, scheduler: Any, name: str | None, timing: Timing) -> None:
        """Give the trainer a schedule, or one more by name; see `BaseTrainer.register_scheduler`.

        Raises:
            RegistrationError: when it cannot be one, or there is one already.
        """
        trainer = self._trainer
        if scheduler is None:
            trainer.scheduler = None if name is None else trainer.scheduler
            return
        scheduler = with_methods("register_scheduler", scheduler, _METHODS)
        timing = _built_timing(scheduler) if timing == Timing() else timing
        self._refuse_without_metric(scheduler, timing)
        trainer.scheduler = self._added(trainer.scheduler, scheduler, name, timing)
        self._registered[id(scheduler)] = (scheduler, timing)
        self.tell_lengths()

    def _added(self, present: Any, scheduler: Any, name: str | None, timing: Timing) -> Any:
        """Return a schedule as the only one, or those that are present with one more by name."""
        if name is None:
            refuse_second("scheduler", None if present is scheduler else present, scheduler)
            return scheduler
        named = NamedSchedules() if present is None else present
        if not isinstance(named, NamedSchedules):
            refuse_second("scheduler", present, scheduler)
        named.add(name, scheduler)
        if self._moment(timing) != self._own_moment:
            named.elsewhere.add(name)
        return named

    def _refuse_without_metric(self, scheduler: Any, timing: Timing) -> None:
        """Refuse a schedule that needs a metric and has none, and one that would take it for an epoch."""
        core = core_of(scheduler)
        needs_metric = isinstance(core, ReduceLROnPlateau)
        if needs_metric and timing.metric is None and self._context.hooks.is_default("scheduler_step"):
            message = (
                "ReduceLROnPlateau needs a metric: register_scheduler(scheduler, metric='loss') with a key of the "
                "validation summary (or cfg.scheduler.metric), or override scheduler_step() to call "
                "self.scheduler.step(metric)"
            )
            raise RegistrationError(message)
        if timing.metric is not None and isinstance(core, LRScheduler) and not needs_metric:
            message = (
                f"{schedule_name(core)} takes no metric (got metric='{timing.metric}'), only ReduceLROnPlateau and "
                "schedules of your own do: give it interval='update' or 'epoch'"
            )
            raise RegistrationError(message)

    # ------------------------------------------------------------------------------------------- moments

    @property
    def _own_moment(self) -> str:
        """When the trainer moves a schedule on of which nothing else was said."""
        return self._trainer._schedule_follows  # noqa: SLF001  the engine's own

    def _moment(self, timing: Timing) -> str:
        return _VALIDATION if timing.metric is not None else timing.interval or self._own_moment

    def _timing(self, scheduler: Any) -> Timing:
        """Return when a schedule steps; one may have been assigned without registration."""
        return self._registered.get(id(scheduler), (None, _built_timing(scheduler)))[1]

    def _entries(self) -> Iterator[tuple[str | None, Any, str]]:
        """Yield name, schedule and moment of each."""
        for name, scheduler in schedules_of(self._trainer.scheduler).items():
            yield name, scheduler, self._moment(self._timing(scheduler))

    def steps(self) -> dict[str, Callable[[], object]]:
        """Return what is to be called after each update and at the end of each epoch.

        The trainer's ``scheduler_step`` acts at its own moment, or at that of the only schedule. What steps at another
        one beside it is called here.
        """
        entries = list(self._entries())
        is_single = [name for name, _, _ in entries] == [None]
        steps: dict[str, Callable[[], object]] = {entries[0][2] if is_single else self._own_moment: self._own_step()}
        for moment in {"update", "epoch"} - steps.keys():
            if others := [each for _, each, own in entries if own == moment]:
                steps[moment] = partial(_move_all, others)
        return steps

    def _own_step(self) -> Callable[[], object]:
        """Return the trainer's ``scheduler_step``; for torch's OneCycleLR what stops at its end."""
        trainer = self._trainer
        if isinstance(trainer.scheduler, OneCycleLR) and self._context.hooks.is_default("scheduler_step"):
            return lambda: _move_all(schedules_of(trainer.scheduler).values())
        return trainer.scheduler_step

    def follow_validation(self, summary: Mapping[str, float]) -> None:
        """Hand the schedules on a metric its number; the same on all processes.

        Raises:
            ResultError: when the summary lacks it.
        """
        for _, scheduler, moment in self._entries():
            if moment != _VALIDATION:
                continue
            value = _number(str(self._timing(scheduler).metric), summary)
            if math.isnan(value):
                self._trainer.log(_nan_text(scheduler, self._timing(scheduler)), level="WARNING")
            else:
                scheduler.step(value)

    @property
    def metrics(self) -> list[str]:
        """Keys of the validation summary that schedules follow."""
        timings = [self._timing(scheduler) for _, scheduler, moment in self._entries() if moment == _VALIDATION]
        return [str(timing.metric) for timing in timings]

    # ------------------------------------------------------------------------------------------- lengths

    def tell_lengths(self) -> None:
        """Tell the schedules that wait for it how many steps the run makes of them, once there is a loader.

        Raises:
            ConfigError: when the loader does not know its length, or the number does not fit.
        """
        if self._trainer.train_loader is None:
            return
        for _, scheduler, moment in self._entries():
            if not isinstance(scheduler, Schedule) or not scheduler.needs_length:
                continue
            if (steps := self._steps_of_run(moment)) is None:
                message = (
                    f"cfg.scheduler.{scheduler.length_key} is missing, and how many updates the run makes is unknown, "
                    "since the training loader has no length (no __len__): give it, or step by interval: epoch"
                )
                raise ConfigError(message)
            scheduler.tell_length(steps)

    def _steps_of_run(self, moment: str) -> int | None:
        """Return how many steps a run of all epochs makes of a schedule; None where the data has no length."""
        settings = self._context.planned
        if moment != "update":
            return settings.max_epoch
        lengths = self._trainer._lengths(settings)  # noqa: SLF001  the engine's own
        batches = UnevenRanks(lengths, self._context.world.rank, settings.uneven).length
        return None if batches is None else settings.max_epoch * math.ceil(batches / settings.grad_acc_steps)

    def say_what_does_not_fit(self) -> None:
        """Say that there is no schedule, or that one is shorter or much longer than the run."""
        trainer, context = self._trainer, self._context
        if trainer.scheduler is None:
            trainer.log("no learning rate schedule is registered: the rate stays as it is")
        if not context.hooks.is_default("scheduler_step"):
            return
        for name, scheduler, moment in self._entries():
            steps = self._steps_of_run(moment) if moment in {"epoch", "update"} else None
            hint = None if steps is None else schedule_hint(scheduler, steps, moment)
            for text in filter(None, (hint, self._end_text(name, scheduler, moment))):
                trainer.log(text, level="WARNING")

    def _end_text(self, name: str | None, scheduler: Any, moment: str) -> str | None:
        """Say that the run goes on after the end of a schedule."""
        end = ends_after(scheduler)
        steps = None if end is None else self._steps_of_run(moment)
        if end is None or steps is None or steps <= end:
            return None
        whose = f" '{name}'" if name else ""
        return (
            f"the learning rate schedule{whose} ({schedule_name(scheduler)}) has {end:,} steps, and this run moves it "
            f"on {steps:,} times: after its end the rate stays at its last value. A resumed run keeps the length that "
            "its schedule was begun with; for a new curve start from the weights (--checkpoint without --resume)"
        )


def _built_timing(scheduler: Any) -> Timing:
    """Return when a schedule steps as far as it was built with that."""
    return scheduler.timing if isinstance(scheduler, Schedule) else Timing()


def _move_all(schedules: Iterable[Any]) -> None:
    for schedule in schedules:
        move_on(schedule)


def _number(metric: str, summary: Mapping[str, float]) -> float:
    """Return the number of a validation summary under its key, or under that of the event ``val/key``."""
    key = metric if metric in summary else metric.removeprefix("val/")
    if key not in summary:
        hint = did_you_mean(key, summary)
        message = (
            f"register_scheduler(metric='{metric}'): the validation summary has no number '{key}'{hint} "
            f"(it has: {listed(summary)}). Return it from val_step or add it in after_val_epoch"
        )
        raise ResultError(message)
    return summary[key]


def _nan_text(scheduler: Any, timing: Timing) -> str:
    return f"'{timing.metric}', which the schedule {schedule_name(scheduler)} follows, is NaN: it is not moved on"
