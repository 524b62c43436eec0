"""The only loop over batches: training, validation and testing hand in their step."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from tqdm.auto import tqdm

from vision3d_engine.core.errors import DataError
from vision3d_engine.data.prefetcher import Prefetcher
from vision3d_engine.data.source import Place
from vision3d_engine.endpoints.context_manager import clear_context_manager
from vision3d_engine.loop.results import check_batch
from vision3d_engine.metrics.clock import StepClock
from vision3d_engine.metrics.moments import Moments

Step = Callable[[int, Any], Iterable[dict[str, Any]]]


class Runner:
    """One pass over batches.

    Args:
        phase: ``"train"``, ``"val"`` or ``"test"``, for messages.
        step: what to do with a batch; returns the result dicts to average (one a batch, or one a case).
        after_step: called after the results are taken in; writes the log line when one is due.
        prefetcher: brings batches to the device.
        moments: takes in the results.
        progress_bar: show a bar if the console is a terminal or notebook.
        may_be_empty: no batch is no error, since other processes may have them all.
    """

    def __init__(
        self,
        phase: str,
        step: Step,
        after_step: Callable[[int], None],
        *,
        prefetcher: Prefetcher,
        moments: Moments,
        progress_bar: bool = False,
        may_be_empty: bool = False,
    ) -> None:
        self.phase = phase
        self.moments = moments
        self.clock = StepClock(prefetcher.device)
        self.is_last = False
        self.place: Place = (0, 0)
        self.max_iteration: int | None = None
        self._step = step
        self._after_step = after_step
        self._prefetcher = prefetcher
        self._progress_bar = progress_bar
        self._may_be_empty = may_be_empty

    def run(self, batches: Iterable[tuple[Place, Any]], max_iteration: int | None, done: int = 0) -> None:
        """Walk the batches, each with its place in the data.

        Args:
            batches: what is left of the pass.
            max_iteration: batches of the whole pass, None when not known.
            done: batches of the pass that an earlier process has walked.

        Raises:
            DataError: when there is no batch, or one is not a dict.
        """
        self.max_iteration = max_iteration
        clock, moments = self.clock, self.moments
        iteration, waiting_since = done, time.perf_counter()
        arriving = self._with_bar(self._mark_last(self._prefetcher(batches), done))
        for iteration, (place, data_dict) in enumerate(arriving, start=done + 1):
            self.place = place
            clear_context_manager()
            check_batch(data_dict, self.phase)
            started, mark = time.perf_counter(), clock.start()
            for result_dict in self._step(iteration, data_dict):
                moments.update(result_dict)
            if mark is not None:
                clock.stop(mark)
            clock.count(started - waiting_since, time.perf_counter() - started)
            self._after_step(iteration)
            waiting_since = time.perf_counter()
        if iteration == 0 and not self._may_be_empty:
            message = (
                f"the {self.phase} loader is empty: it yields no batch. Check the data set, batch_size and drop_last"
            )
            raise DataError(message)

    def _mark_last(self, batches: Iterable[Any], done: int) -> Iterator[Any]:
        """Keep `is_last` true while the last batch is at hand; without a known number, by looking one batch ahead."""
        if self.max_iteration is not None or not self._prefetcher.looks_ahead:
            for number, batch in enumerate(batches, start=done + 1):
                self.is_last = number == self.max_iteration
                yield batch
            return
        stream = iter(batches)
        upcoming = next(stream, _END)
        while upcoming is not _END:
            batch, upcoming = upcoming, next(stream, _END)
            self.is_last = upcoming is _END
            yield batch

    def _with_bar(self, batches: Iterator[Any]) -> Iterable[Any]:
        """Show a bar on a terminal or in a notebook (``disable=None`` is silent elsewhere)."""
        if not self._progress_bar:
            return batches
        return tqdm(batches, total=self.max_iteration, desc=self.phase, disable=None, leave=False)


_END = object()
