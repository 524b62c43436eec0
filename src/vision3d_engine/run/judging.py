"""What follows from the numbers of a validation: schedules move on, best models are kept, the run may end."""

import math
from collections.abc import Mapping
from typing import Any

from vision3d_engine.checkpoint.manager import CheckpointManager
from vision3d_engine.core.errors import ResultError, did_you_mean, listed
from vision3d_engine.loop.context import PassContext
from vision3d_engine.loop.result_checks import as_numbers
from vision3d_engine.run.autosave import Autosave
from vision3d_engine.run.ending import Ending
from vision3d_engine.run.scheduling import Scheduling


class Judging:
    """Lets all that follows a metric follow the validations of a run.

    Args:
        trainer: what is said is said through its ``log``.
        context: the counters, and the registered metrics.
        checkpoints: knows the metrics that select best models.
        scheduling: moves on schedules.
        autosave: keeps best models.
        ending: may end the run.
    """

    def __init__(
        self,
        trainer: Any,
        context: PassContext,
        checkpoints: CheckpointManager,
        scheduling: Scheduling,
        autosave: Autosave,
        ending: Ending,
    ) -> None:
        self._trainer, self._progress, self._metrics = trainer, context.progress, context.metrics
        self._checkpoints = checkpoints
        self._scheduling, self._autosave, self._ending = scheduling, autosave, ending
        self._summary: Mapping[str, Any] | None = None
        self._said_nan: set[str] = set()

    def judge(self, summary_dict: Mapping[str, Any], only_validates: bool) -> None:
        """Take in a validation; a run that only validates keeps no model, and nothing follows.

        Schedules and early stopping do not follow that of a cut epoch, which they meet again if the run is extended.
        """
        numbers = self._with_unmeasured(as_numbers(summary_dict))
        self._summary = {**summary_dict, **numbers}
        for metric in self._checkpoints.metrics:
            if math.isnan(numbers.get(metric, 0.0)) and metric not in self._said_nan:
                self._said_nan.add(metric)
                self._trainer.log(self._nan_text(metric), level="WARNING")
        if only_validates:
            return
        if not self._ending.is_cut:
            self._scheduling.follow_validation(numbers)
        self._autosave.save_best(numbers)
        if warning := self._ending.judge(numbers):
            self._trainer.log(warning, level="WARNING")

    def _with_unmeasured(self, numbers: dict[str, float]) -> dict[str, float]:
        """Return numbers with NaN for what is followed and was not measured, since all batches were left out."""
        followed = (*self._followers(), *self._scheduling.metrics)
        is_unmeasured = self._trainer._pass.is_unmeasured  # noqa: SLF001  the engine's own
        return dict.fromkeys((key for key in followed if key not in numbers and is_unmeasured(key)), math.nan) | numbers

    def _nan_text(self, metric: str) -> str:
        """Say that a metric that selects best models is NaN, and where that began."""
        first = self._trainer._pass.first_not_finite(metric)  # noqa: SLF001  the engine's own
        where = f", from batch {first} of this process on" if first is not None else ""
        return (
            f"the metric '{metric}', which selects best models, is NaN in epoch {self._progress.epoch}{where}; NaN is "
            "never best. Where a batch has nothing to measure, give it no weight (metric_weight). This is said once"
        )

    def check(self) -> None:
        """Refuse to go on when a metric that something follows is never there; say which ones nothing updates.

        Raises:
            ResultError: naming what follows it, and the numbers that there are.
        """
        summary_dict = self._summary
        if summary_dict is None:  # the user validates by a loop of their own
            return
        if self._progress.total_steps:  # else steps of training may still update them
            self._metrics.tell_unused()
        numbers = as_numbers(summary_dict)
        for metric, follower in self._followers().items():
            if metric not in numbers:
                raise ResultError(f"{follower}: {self._missing_text(metric, summary_dict)}")

    def _missing_text(self, metric: str, summary_dict: Mapping[str, Any]) -> str:
        """Say that a number is not in a summary, and why, or what there is."""
        if (name := self._metrics.not_updated(metric)) is not None:
            return (
                f"the metric '{name}' is registered, but nothing updated it in the validation, so there is no number "
                f"'{metric}'. Call update of the handle that register_metric('{name}', ...) returned, in val_step"
            )
        return (
            f"the validation summary has no number '{metric}'{did_you_mean(metric, summary_dict)} (it has: "
            f"{listed(summary_dict)}). Return it from val_step or add it in after_val_epoch"
        )

    def _followers(self) -> dict[str, str]:
        """Return what follows a metric, by metric."""
        metric = self._ending.early_stopping.metric
        early = {} if metric is None else {metric: f"trainer.early_stopping_metric '{metric}'"}
        return early | {name: f"save_best_model_on_metric('{name}')" for name in self._checkpoints.metrics}
