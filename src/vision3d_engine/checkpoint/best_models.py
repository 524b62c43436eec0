"""Which models are the best by a metric, judged by the files that hold them: written, or on their way to the disk."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from vision3d_engine.checkpoint.retention import best_name
from vision3d_engine.core.errors import RegistrationError


class BestModels:
    """The scores of best models and of all epochs.

    A score counts from the moment its file is submitted, and no longer when the file could not be written. One thread
    asks, another may report what became of the files.
    """

    def __init__(self) -> None:
        self._largest: dict[str, bool] = {}
        self._written: dict[str, float] = {}
        self._epochs: dict[str, int | None] = {}
        self._in_flight: list[tuple[str, float]] = []
        self._epoch_scores: dict[str, dict[int, float]] = {}

    @property
    def largest(self) -> dict[str, bool]:
        """By metric, whether more is better."""
        return dict(self._largest)

    @property
    def best(self) -> dict[str, tuple[float | None, int | None]]:
        """By metric, the score of the file that is written and its epoch; None where there is none, or not known."""
        return {metric: (self._written.get(metric), self._epochs.get(metric)) for metric in self._largest}

    def add(self, metric: str, largest: bool) -> None:
        """Select by one more metric.

        Raises:
            RegistrationError: when there is one of this name, or one whose models would lie in the same file.
        """
        if metric in self._largest:
            raise RegistrationError(f"best models are already selected on '{metric}'; name each metric once")
        if other := next((one for one in self._largest if best_name(one) == best_name(metric)), None):
            message = f"the best models by '{other}' and by '{metric}' would both be '{best_name(metric)}'; rename one"
            raise RegistrationError(message)
        self._largest[metric] = largest

    def known(self, summary: Mapping[str, Any]) -> dict[str, float]:
        """Return the scores in a summary."""
        return {metric: float(summary[metric]) for metric in self._largest if metric in summary}

    def record(self, scores: Mapping[str, float], epoch: int) -> None:
        """Remember the scores of an epoch, which decide what files of epochs stay."""
        for metric, score in scores.items():
            self._epoch_scores.setdefault(metric, {})[epoch] = score

    def epoch_scores(self) -> dict[str, dict[int, float]]:
        """Return a copy of the scores of all epochs by metric."""
        return {metric: dict(scores) for metric, scores in self._epoch_scores.items()}

    def improved(self, scores: Mapping[str, float], wait: Callable[[], None]) -> dict[str, float]:
        """Return the scores that are better than all before; nan never is.

        Args:
            scores: new ones by metric.
            wait: returns when no file is in flight; called when the answer depends on what becomes of one.
        """
        return {metric: score for metric, score in scores.items() if self._improves(metric, score, wait)}

    def _improves(self, metric: str, score: float, wait: Callable[[], None]) -> bool:
        written = list(self._written.items())
        if self._beats(metric, score, written) and not self._beats(metric, score, list(self._in_flight)):
            wait()
        return self._beats(metric, score, [*self._in_flight, *self._written.items()])

    def _beats(self, metric: str, score: float, others: Iterable[tuple[str, float]]) -> bool:
        sign = 1 if self._largest[metric] else -1
        rivals = [other for name, other in others if name == metric]
        return not math.isnan(score) and all(sign * score > sign * other for other in rivals)

    def submitted(self, metric: str, score: float) -> None:
        """Let a score count whose file is on its way."""
        self._in_flight.append((metric, score))

    def report(self, metric: str, score: float, epoch: int, is_written: bool) -> None:
        """Let a score count for good when its file is on the disk, and no longer when it could not be written."""
        if is_written:
            self._written[metric], self._epochs[metric] = score, epoch
        self._in_flight.remove((metric, score))

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """Return the scores of the files that are written, each with its epoch."""
        best = self.best
        return {
            name: {"score": best[name][0], "largest": more, "epoch": best[name][1]}
            for name, more in self._largest.items()
        }

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]], epoch_scores: Mapping[str, Any]) -> None:
        """Take scores over; those of a metric that is not registered are left out."""
        for metric, best in state.items():
            if metric in self._largest and best["score"] is not None:
                self._written[metric] = float(best["score"])
                self._epochs[metric] = best.get("epoch")  # an older file does not tell
        self._epoch_scores = {metric: dict(scores) for metric, scores in epoch_scores.items()}
