"""The metrics that select best models: whether validations have them, and whether they are numbers."""

import math
from typing import Any

from vision3d_engine.checkpoint.manager import CheckpointManager
from vision3d_engine.core.errors import ResultError, did_you_mean, listed
from vision3d_engine.loop.result_checks import as_numbers


class SelectingMetrics:
    """Looks at the summary of each validation for the metrics that select best models.

    Args:
        trainer: whose log is told.
        checkpoints: knows the metrics.
        progress: says which epoch it is.
    """

    def __init__(self, trainer: Any, checkpoints: CheckpointManager, progress: Any) -> None:
        self._trainer, self._checkpoints, self._progress = trainer, checkpoints, progress
        self._summary: dict[str, Any] | None = None
        self._said_nan: set[str] = set()

    def look(self, summary_dict: dict[str, Any]) -> dict[str, float]:
        """Return the numbers of a summary; say once of a metric that it is NaN."""
        self._summary, numbers = summary_dict, as_numbers(summary_dict)
        for metric in self._checkpoints.metrics:
            if math.isnan(numbers.get(metric, 0.0)) and metric not in self._said_nan:
                self._said_nan.add(metric)
                self._trainer.log(self._nan_text(metric), level="WARNING")
        return numbers

    def _nan_text(self, metric: str) -> str:
        """Say that a metric is NaN, and where that began."""
        first = self._trainer._pass.first_not_finite(metric)  # noqa: SLF001  the engine's own
        where = f", from batch {first} of this process on" if first is not None else ""
        return (
            f"the metric '{metric}', which selects best models, is NaN in epoch {self._progress.epoch}{where}; NaN is "
            "never best. Where a batch has nothing to measure, give it no weight (metric_weight). This is said once"
        )

    def check(self) -> None:
        """Refuse to go on when a metric is not in the latest summary.

        Raises:
            ResultError: saying what is there.
        """
        if self._summary is None:  # the user validates by a loop of their own
            return
        for metric in self._checkpoints.metrics:
            if metric not in as_numbers(self._summary):
                hint = did_you_mean(metric, self._summary)
                message = (
                    f"save_best_model_on_metric('{metric}'): the validation summary has no number '{metric}'{hint} "
                    f"(it has: {listed(self._summary)}). Return it from val_step or add it in after_val_epoch"
                )
                raise ResultError(message)
