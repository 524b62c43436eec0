"""How a training run ends in the log: how far it came, its best models, where it lies, and how long it took."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vision3d_engine.checkpoint.manager import NEWEST, CheckpointManager
from vision3d_engine.checkpoint.retention import best_name
from vision3d_engine.logs.closing_block import closing_block, first_of
from vision3d_engine.logs.log_line import clock_text, get_print_format
from vision3d_engine.loop.context import PassContext
from vision3d_engine.run.run_folder import Folders
from vision3d_engine.run.stopping import StopRun

_LOST = f"run ended, but what it has trained is not saved: '{NEWEST}' could not be written, see the errors above"


class RunClock:
    """How long this process has run, and the run with all its processes before, as far as checkpoints tell."""

    def __init__(self) -> None:
        self._started = self._since = time.monotonic()
        self._before_s: float | None = 0.0

    @property
    def process_s(self) -> float:
        """Seconds of this process."""
        return time.monotonic() - self._started

    @property
    def run_s(self) -> float | None:
        """Seconds of the whole run; None when its checkpoint does not tell those of before."""
        return None if self._before_s is None else self._before_s + time.monotonic() - self._since

    def resume(self, run_s: float | None) -> None:
        """Go on from a checkpoint, which tells how long the run had taken until then."""
        self._before_s, self._since = run_s, time.monotonic()

    def text(self) -> str:
        """Return ``1:02:03``, of a resumed run with the time of all of it."""
        whole = "" if not self._before_s or self.run_s is None else f"; the whole run {clock_text(self.run_s)}"
        return clock_text(self.process_s) + whole


class Closing:
    """Says in the log how a training run has ended.

    Args:
        trainer: whose ``log`` and ``max_epoch`` count.
        context: the counters, and the log.
        folders: where files lie.
        checkpoints: knows the best models.
        clock: knows how long the run has taken.
    """

    def __init__(
        self, trainer: Any, context: PassContext, folders: Folders, checkpoints: CheckpointManager, clock: RunClock
    ) -> None:
        self._trainer, self._context, self._folders = trainer, context, folders
        self._checkpoints, self._clock = checkpoints, clock

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Say it when a block is through, and in one line when it is stopped; an error speaks for itself."""
        try:
            yield
        except StopRun:
            self._trainer.log(f"so far: {self._moment()}; time {self._clock.text()}")
            raise
        is_lost = self._checkpoints.has_failed(NEWEST)
        title, level = (_LOST, "WARNING") if is_lost else ("run ended", "SUCCESS")
        self._trainer.log(closing_block(f"{title}: {self._moment()}", self._lines()), level=level)

    def _moment(self) -> str:
        counters, last = self._context.counters.row(), self._trainer.max_epoch
        epoch, batches = counters.pop("epoch"), counters.pop("total_steps")
        numbers = {"batches": batches, **counters}
        of = "" if last is None else f"/{last}"
        return ", ".join([f"epoch {epoch}{of}", *(f"{number:,} {name}" for name, number in numbers.items())])

    def _lines(self) -> dict[str, str]:
        logger, best = self._context.logger, self._checkpoints.best
        lines = first_of({f"best {metric}": self._best_text(metric, *found) for metric, found in best.items()})
        lines |= {"run folder": str(self._folders.output), "time": self._clock.text()}
        return lines if not logger.warnings else lines | {"warnings": f"{logger.warnings}, in {logger.log_file}"}

    def _best_text(self, metric: str, score: float | None, epoch: int | None) -> str:
        if score is None:
            return "none"
        path, output = self._folders.checkpoints / best_name(metric), self._folders.output
        where = path.relative_to(output) if path.is_relative_to(output) else path
        return f"{score:{get_print_format(score)}}{'' if epoch is None else f' in epoch {epoch}'}, {where}"
