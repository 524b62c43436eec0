"""Whether validations still get better: early stopping by ``trainer.early_stopping_*``."""

import math
from collections.abc import Mapping
from typing import Any

from vision3d_engine.core.errors import ConfigError


class NoEarlyStopping:
    """Early stopping that is off: it never ends a run.

    Attributes:
        metric: key of the validation summary that is followed; None when it is off.
    """

    metric: str | None = None

    def prepare(self, largest: Mapping[str, bool]) -> None:
        """Find out whether more is better, from the metrics that select best models."""

    def judge(self, numbers: Mapping[str, float], epoch: int) -> str | None:
        """Take in the numbers of a validation, the same on all processes; return what there is to be warned of."""

    def reason(self) -> str | None:
        """Say why the run ends; None while it goes on."""

    def state_dict(self) -> dict[str, Any]:
        """Return the best number and how many validations have not reached it."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state; an empty one begins anew."""


class EarlyStopping(NoEarlyStopping):
    """Ends a run when a metric has not improved for so many validations; NaN is no improvement.

    Args:
        metric: key of the validation summary.
        mode: ``"min"`` or ``"max"``; None for that in which the metric selects best models.
        patience: validations without improvement.
        min_delta: by how much a number must be better than the best one.
    """

    def __init__(self, metric: str, mode: str | None, patience: int, min_delta: float) -> None:
        self.metric: str | None = metric
        self._mode, self._patience, self._min_delta = mode, patience, min_delta
        self._best: float | None = None
        self._best_epoch = self._waited = 0

    def prepare(self, largest: Mapping[str, bool]) -> None:
        """Find out whether more is better, from the metrics that select best models.

        Raises:
            ConfigError: when nothing says so, or both say otherwise.
        """
        selects = {True: "max", False: "min", None: self._mode}[largest.get(str(self.metric))]
        if self._mode is not None and self._mode != selects:
            message = (
                f"cfg.trainer.early_stopping_mode is '{self._mode}', and save_best_model_on_metric('{self.metric}', "
                f"largest={selects == 'max'}) selects by the opposite: give both one direction, or leave the mode out"
            )
            raise ConfigError(message)
        if self._mode is None and self.metric not in largest:
            message = (
                f"cfg.trainer.early_stopping_mode is missing: whether more of '{self.metric}' is better. Set it to "
                f"'min' or 'max', or call save_best_model_on_metric('{self.metric}', largest=...)"
            )
            raise ConfigError(message)
        self._mode = self._mode or ("max" if largest[str(self.metric)] else "min")

    def judge(self, numbers: Mapping[str, float], epoch: int) -> str | None:
        """Take in the numbers of a validation, the same on all processes; return what there is to be warned of."""
        value = numbers.get(str(self.metric))
        if value is None:  # an error where best models are checked
            return None
        if self._improves(value):
            self._best, self._best_epoch, self._waited = value, epoch, 0
        else:
            self._waited += 1
        return self._nan_text(epoch) if math.isnan(value) else None

    def _improves(self, value: float) -> bool:
        if self._best is None:
            return not math.isnan(value)
        gain = value - self._best if self._mode == "max" else self._best - value
        return gain > self._min_delta

    def _nan_text(self, epoch: int) -> str:
        left = max(self._patience - self._waited, 0)
        return (
            f"'{self.metric}', which trainer.early_stopping_metric follows, is NaN in epoch {epoch}: it counts as no "
            f"improvement, and {left} more end the run. Where a batch has nothing to measure, give it no weight "
            "(metric_weight)"
        )

    def reason(self) -> str | None:
        """Say why the run ends; None while it goes on."""
        if self._waited < self._patience:
            return None
        best = "it was never a number"
        if self._best is not None:
            best = f"the best one was {self._best:.6g} in epoch {self._best_epoch}"
        enough = f" by more than {self._min_delta:g} (early_stopping_min_delta)" if self._min_delta else ""
        return f"'{self.metric}' has not improved{enough} in {self._waited} validations; {best}"

    def state_dict(self) -> dict[str, Any]:
        """Return the best number and how many validations have not reached it."""
        return {"metric": self.metric, "best": self._best, "best_epoch": self._best_epoch, "waited": self._waited}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state; an empty one, or one of another metric, begins anew."""
        known = state if state.get("metric") == self.metric else {}
        self._best, self._best_epoch = known.get("best"), known.get("best_epoch", 0)
        self._waited = known.get("waited", 0)


def choose_early_stopping(settings: Any) -> NoEarlyStopping:
    """Return what the settings ``trainer.early_stopping_*`` ask for."""
    if settings.early_stopping_metric is None:
        return NoEarlyStopping()
    return EarlyStopping(
        settings.early_stopping_metric,
        settings.early_stopping_mode,
        settings.early_stopping_patience,
        settings.early_stopping_min_delta,
    )
