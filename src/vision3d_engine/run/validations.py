"""When a run is validated: decided from its counters alone, so that all processes and every resume decide alike."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from vision3d_engine.core.durations import parse_val_cadence
from vision3d_engine.core.errors import RegistrationError
from vision3d_engine.core.seeding import kept_generators
from vision3d_engine.loop.context import PassContext
from vision3d_engine.run.autosave import Autosave
from vision3d_engine.run.ending import Ending
from vision3d_engine.update.ema import NoAverage


class Validations:
    """Says when a validation is due and by what it is seeded, and makes those in the midst of training.

    Args:
        trainer: whose ``val_epoch`` validates.
        context: settings and counters.
        average: what the model holds meanwhile.
        autosave: saves before a validation, which may fail, and behind it.
        ending: knows whether an epoch is the last one.
        check: refuses the numbers of a validation that select nothing.

    Attributes:
        is_off: whether it is never validated.
    """

    def __init__(
        self,
        trainer: Any,
        context: PassContext,
        average: NoAverage,
        autosave: Autosave,
        ending: Ending,
        check: Callable[[], None],
    ) -> None:
        self._trainer, self._context, self._progress = trainer, context, context.progress
        self._average, self._autosave, self._ending, self._check = average, autosave, ending, check
        self._cadence = parse_val_cadence(context.settings.val_every)
        self._every = int(self._cadence.number) if self._cadence else 0
        self._counts_steps = self._cadence is not None and self._cadence.unit == "iteration"
        self.is_off = self._cadence is None
        self._has_warned = False

    # ------------------------------------------------------------------------------------------- when

    def due_at(self) -> float:
        """Return the number of total steps from which on an update is validated; infinite where none is."""
        validated = max(self._progress.validated, 0)
        return (validated // self._every + 1) * self._every if self._counts_steps else math.inf

    def is_due_after_epoch(self) -> bool:
        """Tell whether the epoch that has just been trained is validated; the last one of a run always is."""
        if self.is_off:
            return False
        progress = self._progress
        is_last = self._ending.ends_with_epoch()
        if not self._counts_steps:
            return is_last or progress.epoch % self._every == 0
        if self._is_own_loop():
            self._warn_of_own_loop()
            return True
        return progress.total_steps >= self.due_at() or (is_last and progress.validated < progress.total_steps)

    def _is_own_loop(self) -> bool:
        """Tell whether a loop of the user's own has trained the epoch, whose updates nobody has counted."""
        return self._progress.is_trained and self._progress.trained == 0

    def _warn_of_own_loop(self) -> None:
        if not self._has_warned:
            self._has_warned = True
            message = (
                f"trainer.val_every is '{self._context.settings.val_every}', and train_epoch is a loop of your own, "
                "whose iterations the engine does not see: it is validated after each epoch. Call "
                "super().train_epoch(), or count in epochs"
            )
            self._trainer.log(message, level="WARNING")

    # ------------------------------------------------------------------------------------------- where

    def context(self) -> PassContext:
        """Return what a validation works with: it follows total steps where these are counted, else the epoch."""
        return replace(self._context, by_steps=self._counts_steps and not self._is_own_loop())

    def place_in_epoch(self) -> tuple[int | None, int | None]:
        """Return the iteration of the epoch in whose midst it is validated, and how many there are; else twice None."""
        progress, walked = self._progress, self._trainer._pass  # noqa: SLF001  the engine's own
        if progress.is_trained or not progress.is_open:
            return None, None
        return progress.trained, None if walked is None else walked.runner.max_iteration

    # ------------------------------------------------------------------------------------------- how

    def make(self) -> None:
        """Validate, and count that when it has ended."""
        self._walk()
        self._progress.validated = self._progress.total_steps

    def make_alone(self) -> None:
        """Validate in a run that does not train."""
        self._walk()
        self._check()

    def _walk(self) -> None:
        """Validate by the trainer's own loop, which may be one of the user's."""
        self._context.metrics.forget_passes()
        with self._context.times.around.part("validation"), self._average.in_model():
            self._trainer.val_epoch()

    def before_training(self) -> None:
        """Validate once before the first epoch, if that is asked for."""
        if self._context.settings.val_first and self._progress.epoch == 0 and self._progress.validated < 0:
            self.between_updates()

    def between_updates(self) -> None:
        """Validate in the midst of training; a resume neither loses training to it nor makes it again."""
        self._autosave.save_or_stop()
        with self._undisturbed():
            self.make()
        self._autosave.save_newest()
        self._check()

    @contextmanager
    def _undisturbed(self) -> Iterator[None]:
        """Let training go on behind a block as if nothing had been; an error ends it anyway."""
        trainer, walked = self._trainer, self._trainer._pass  # noqa: SLF001  the engine's own
        modes = [(module, module.training) for module in trainer.model.modules()]
        gradients = [(parameter, parameter.grad) for parameter in trainer.model.parameters()]
        apart = trainer._records.put_aside(), self._context.metrics.walking(None)  # noqa: SLF001
        with kept_generators(self._context.world.device), apart[0], apart[1]:
            yield
        for module, mode in modes:
            module.training = mode
        for parameter, gradient in gradients:
            parameter.grad = gradient
        trainer._pass, self._progress.iteration = walked, self._progress.trained  # noqa: SLF001

    # ------------------------------------------------------------------------------------------- what it needs

    def check_parts(self, only_validation: bool, selects: Iterable[str], schedules: Iterable[str]) -> None:
        """Refuse validations that lack a part, and to follow those that never come.

        Args:
            only_validation: it is validated once, whatever the cadence.
            selects: metrics that select best models.
            schedules: metrics that schedules follow.

        Raises:
            RegistrationError: saying what to do.
        """
        if not self.is_off or only_validation:
            self._require_parts()
            return
        calls = [f"save_best_model_on_metric('{metric}')" for metric in selects]
        calls += [f"register_scheduler(metric='{metric}')" for metric in schedules]
        if (metric := self._context.settings.early_stopping_metric) is not None:
            calls.append(f"trainer.early_stopping_metric '{metric}'")
        if calls:
            message = f"{calls[0]} follows validations, and trainer.val_every is 'never': set it to '1 epoch', '500 "
            raise RegistrationError(message + "iterations' or the like, or leave the metric out")

    def _require_parts(self) -> None:
        """Refuse a validation without data, and one without steps, unless its loop is the user's own."""
        trainer, hooks = self._trainer, self._context.hooks
        name, way_out = type(trainer).__name__, "or set trainer.val_every to 'never' to train without validation"
        if trainer.val_loader is None:
            message = (
                f"{name} has no val loader; call register_loader(train_loader, val_loader) before run(), {way_out}"
            )
            raise RegistrationError(message)
        if hooks.is_default("val_step") and hooks.is_default("val_epoch"):
            raise RegistrationError(f"{name} has no val_step; write one, {way_out}")
