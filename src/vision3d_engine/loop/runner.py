"""The only loop over batches: training, validation and testing hand in their iteration."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from vision3d_engine.core.errors import DataError, add_note, shortened
from vision3d_engine.data.endless_stream import Place
from vision3d_engine.data.prefetcher import Prefetcher
from vision3d_engine.endpoints.context_manager import get_context_manager
from vision3d_engine.loop.progress_bar import ProgressBar
from vision3d_engine.loop.result_checks import check_batch
from vision3d_engine.metrics.step_clock import StepClock

_MAX_NAMES = 16


class Runner:
    """One walk over batches, with a bar.

    Args:
        phase: ``"train"``, ``"val"`` or ``"test"``, for messages.
        iterate: what to do with a batch.
        after_iteration: called when the time of the batch has been taken; writes the log line when one is due.
        prefetcher: brings batches to the device.
        bar: shows on a terminal or in a notebook how far the walk is.
        where: returns which batch one is, by its number and place, for errors.
        may_be_empty: no batch is no error, since other processes may have them all.
        loader: what the loader is called in messages; None for that of the phase.

    Attributes:
        iterate: what is done with a batch; may be exchanged between two steps.
        watched: returns batches that arrive, given them; called once a walk.
        clock: how long the steps take.
        is_last: whether the batch at hand is the last one.
        place: where the batch at hand stands in the data.
        batch: the batch of the step at hand, on the device; None between two steps.
        max_iteration: batches of the whole pass, None when not known.
    """

    def __init__(  # noqa: PLR0913  what a walk is made of
        self,
        phase: str,
        iterate: Callable[[int, Any], None],
        after_iteration: Callable[[int], None],
        *,
        prefetcher: Prefetcher,
        bar: ProgressBar,
        where: Callable[[int, Place], str],
        may_be_empty: bool = False,
        loader: str | None = None,
    ) -> None:
        self.phase = phase
        self.clock = StepClock(prefetcher.device)
        self.is_last = False
        self.place: Place = (0, 0, 1)
        self.batch: Any = None
        self.max_iteration: int | None = None
        self._has_ended = self._is_cut = False
        self.iterate = iterate
        self.watched: Callable[[Iterable[Any]], Iterable[Any]] = iter
        self._after_iteration = after_iteration
        self._prefetcher = prefetcher
        self.bar = bar
        self._where = where
        self._may_be_empty = may_be_empty
        self._loader = loader or f"{phase} loader"

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
        try:
            arriving = self.watched(self.bar.over(self._prefetched(batches), max_iteration, done))
            iteration = self._walk(arriving, max_iteration, done)
        finally:
            self.bar.close()
        if iteration == 0 and not self._may_be_empty:
            message = f"the {self._loader} is empty: it yields no batch. Check the data set, batch_size and drop_last"
            raise DataError(message)

    def _walk(self, arriving: Iterable[Any], max_iteration: int | None, done: int) -> int:
        """Walk the batches that arrive on the device; return the number of the last one."""
        clock, endpoints = self.clock, get_context_manager()
        iteration, waiting_since = done, time.perf_counter()
        for iteration, (self.place, data_dict) in enumerate(arriving, start=done + 1):
            self.batch = data_dict
            self.is_last = iteration == max_iteration or self._has_ended
            if endpoints.is_used:
                endpoints.clear()
            if type(data_dict) is not dict:
                check_batch(data_dict, self._loader)
            started, mark = time.perf_counter(), clock.start()
            try:
                self.iterate(iteration, data_dict)
                self.batch = None
            except Exception as error:
                add_note(error, f"in {self._where(iteration, self.place)}{_named(data_dict)}")
                raise
            if mark is not None:
                clock.stop(mark)
            clock.count(started - waiting_since, time.perf_counter() - started)
            self._after_iteration(iteration)
            if self._is_cut:
                break
            waiting_since = time.perf_counter()
        endpoints.clear()
        self.batch = None
        return iteration

    def cut(self) -> None:
        """Walk no further than to the batch at hand."""
        self._is_cut = True

    def _prefetched(self, batches: Iterable[Any]) -> Iterable[Any]:
        """Return the batches on the device; without a known number of them it looks one ahead for the last one."""
        arriving = self._prefetcher(batches)
        is_unknown = self.max_iteration is None and self._prefetcher.looks_ahead
        return self._noticing_the_last(iter(arriving)) if is_unknown else arriving

    def _noticing_the_last(self, arriving: Iterator[Any]) -> Iterator[Any]:
        upcoming = next(arriving, _END)
        while upcoming is not _END:
            batch, upcoming = upcoming, next(arriving, _END)
            self._has_ended = upcoming is _END
            yield batch


def _named(data_dict: Any) -> str:
    """Return the names of a batch's samples, if it has some: a text or several under ``name`` or ``names``."""
    names = data_dict.get("name", data_dict.get("names")) if isinstance(data_dict, Mapping) else None
    names = [names] if isinstance(names, str) else names
    is_text = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    return f" ({shortened(names, _MAX_NAMES)})" if names and is_text else ""


_END = object()
