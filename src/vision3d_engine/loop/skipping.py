"""Batches that a pass leaves out: which, why, how many, and when there are too many."""

import gc
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from vision3d_engine.core.errors import ConfigError, ResultError, SkipBatch, listed, shortened, text_of
from vision3d_engine.data.resumable_loader import Place, ResumableLoader
from vision3d_engine.debug.finite import NonFiniteNotes
from vision3d_engine.loop.context import PassContext
from vision3d_engine.metrics.running_means import SKIPPED, RunningMeans
from vision3d_engine.optim.named_optimizers import optimizers_of

# So many are said one by one in a pass of a process.
_SAID = 10
# A pass that has left out all of so many batches would leave out the rest too.
_HOPELESS = 10
_MAX_SAMPLES = 16
_TITLES = {"train": "training", "val": "validation", "test": "test"}
# Of so many updates the first that was skipped is named in a log line; all are counted.
_MAX_UPDATES = 1024
_NO_BATCH = "the loader yielded None in place of a batch"
_FORBIDDEN = (
    "a batch is to be left out ({}; {}), which does not go with {} on several processes: the others wait for what its "
    "step exchanges. Give it no weight instead: return 0 from loss_weight, and call self.update(..., weight=0) where "
    "that is used"
)


class SkippedBatches:
    """Counts, on each process, the batches of a pass that are left out, and says which.

    Args:
        context: settings, processes, counters, log.
        loader: whose batches they are.
        meters: the running means of the pass, which keep the number through a resume and add it up over processes.
        phase: ``"train"``, ``"val"`` or ``"test"``.
        forbidden_by: why none can be left out; None if it can.
        name: of the set, where a validation has several.
    """

    def __init__(
        self,
        context: PassContext,
        loader: ResumableLoader,
        meters: RunningMeans,
        phase: str,
        forbidden_by: str | None = None,
        name: str | None = None,
    ) -> None:
        self._context, self._loader, self._meters = context, loader, meters
        self._title = _TITLES[phase] if name is None else f"{_TITLES[phase]} '{name}'"
        self._forbidden_by = forbidden_by
        self._said = 0

    def note(self, iteration: int, place: Place, error: BaseException) -> None:
        """Count one, and say which; only the first ones of a pass are said.

        Raises:
            ResultError: when none can be left out.
        """
        if self._forbidden_by is not None:
            raise ResultError(_FORBIDDEN.format(error, self.where(iteration, place), self._forbidden_by)) from error
        self._meters.count(SKIPPED)
        self._said += 1
        if self._said <= _SAID:
            more = ". More of this pass are only counted" if self._said == _SAID else ""
            reason = text_of(error) or type(error).__name__
            self._context.logger.warn(f"skipped: {reason} ({self.where(iteration, place)}){more}")

    def where(self, iteration: int, place: Place) -> str:
        """Return which batch it is: epoch, iteration and, where its order is a function of the position, samples."""
        samples = self._loader.samples_at(place)
        named = f", samples {shortened(samples, _MAX_SAMPLES)}" if samples else ""
        of = f"epoch {epoch}, " if (epoch := self._context.progress.epoch) else ""
        return f"{self._title} {of}iteration {iteration}{named}"


class SkipLimit:
    """Ends a training that leaves out more than ``trainer.max_skipped``; the same on all processes.

    Args:
        context: settings and counters.
        lengths: batches of the epoch of each process; None where it is not known.
    """

    def __init__(self, context: PassContext, lengths: Sequence[int | None]) -> None:
        self._share, self._progress = context.settings.max_skipped, context.progress
        self._size, self._window = len(lengths), context.settings.grad_acc_steps
        known = [length for length in lengths if length is not None]
        self._batches = sum(known) if len(known) == len(lengths) else None
        self._updates = None if self._batches is None else -(-max(known) // self._window)

    def add(self, batches: int, updates: int = 0) -> None:
        """Take in how many batches, and how many updates, all processes have left out since the last call.

        Raises:
            ResultError: when there are too many.
        """
        self._progress.skipped += batches
        self._progress.skipped_updates += updates
        if batches or updates:
            self._judge(_HOPELESS, self._batches, self._updates)

    def close(self) -> None:
        """Judge an epoch whose length was not known before its end.

        Raises:
            ResultError: when too many were left out.
        """
        if self._batches is None:
            self._judge(1, *self._seen)

    @property
    def _seen(self) -> tuple[int, int]:
        """Batches of all processes, and updates, that are behind us in the epoch."""
        iteration = self._progress.iteration
        return iteration * self._size, -(-iteration // self._window)

    def _judge(self, hopeless: int, batches: int | None, updates: int | None) -> None:
        left_out = (self._progress.skipped, self._progress.skipped_updates)
        for number, total, seen, what in zip(
            left_out, (batches, updates), self._seen, ("training batches", "updates"), strict=True
        ):
            is_all = number >= max(seen, hopeless)
            if is_all or (total is not None and number > self._share * total):
                raise ResultError(self._text(number, total or seen, what, number >= seen))

    def _text(self, number: int, total: int, what: str, is_all: bool) -> str:
        limit, way_out = f"trainer.max_skipped allows {self._share:.0%}", "clean the data, or raise trainer.max_skipped"
        if is_all:
            limit, way_out = "which are all: nothing was trained", "if train_step returns nothing, add its return"
        progress = self._progress
        return (
            f"{number} of {total} {what} of epoch {progress.epoch} were skipped, up to iteration {progress.iteration}; "
            f"{limit}. The reasons stand in the log above (of other processes in logs/rankN.log): {way_out}"
        )


class SkippedUpdates:
    """Updates that are skipped since their gradients are not finite, which is read at log lines only.

    Args:
        context: the counters; its precision counts on the device.
        batches: says which batch an update was made with.
        limit: judges how many there are.
    """

    def __init__(self, context: PassContext, batches: SkippedBatches, limit: SkipLimit) -> None:
        self._precision, self._progress = context.precision, context.progress
        self._notes = NonFiniteNotes(context.debug_folder, context.world.is_main)
        self._is_on = context.settings.nonfinite == "skip"
        self._batches, self._limit = batches, limit
        self._made: deque[tuple[int, Place]] = deque(maxlen=_MAX_UPDATES)
        self._are_finite: deque[torch.Tensor] = deque(maxlen=_MAX_UPDATES)

    def note(self, iteration: int, place: Place, are_finite: Iterable[Any]) -> None:
        """Note an update, and on the device whether the gradients of its optimizers are finite."""
        if self._is_on:
            self._made.append((iteration, place))
            self._are_finite.append(torch.stack(list(are_finite)).all())

    def probe(self) -> list[torch.Tensor]:
        """Return how many were skipped since the run began, and the first of those noted, from 0; to be read.

        It is -1 where none of them was: a resume does not know which ones were before it.
        """
        if not (self._is_on and self._made):
            return []
        are_bad = torch.stack(list(self._are_finite)).logical_not()
        first = torch.where(are_bad.any(), are_bad.int().argmax(), -1)
        return [*self._precision.probe().values(), first]

    def tell(self, probed: Sequence[float]) -> str | None:
        """Count what `probe` returned, read; return what to say of it, and begin anew.

        Raises:
            ResultError: when too many were skipped.
        """
        if not probed:
            return None
        (total, first), told = map(int, probed), self._progress.told_updates
        made, _ = list(self._made), self._made.clear()
        self._are_finite.clear()
        self._progress.told_updates = total
        if told < 0 or total == told:
            return None
        count = total - told if total > told else total  # a run in between may have had no count
        self._limit.add(0, count)
        where = f", for the first time in {self._first(*made[first])}" if first >= 0 else ""
        return f"skipped updates: {count}; gradients were not finite{where}"

    def _first(self, iteration: int, place: Place) -> str:
        """Note the first of them; return which it is, and how it is replayed."""
        step = self._progress.total_steps - self._progress.iteration + iteration
        replay = self._notes.note("the update was skipped", step, self._progress.epoch, iteration)
        return f"{self._batches.where(iteration, place)}; look into it: {replay}"


class TrainSkips:
    """All about what a training pass leaves out.

    Args:
        trainer: whose optimizers count.
        context: settings, processes, counters, log.
        loader: the training data.
        meters: the running means of the pass.
        lengths: batches of the epoch of each process; None where it is not known.

    Attributes:
        errors: what a step may raise to be left out.
        batches: those that were left out.
        updates: those that were skipped.
        limit: judges how many there are of both.

    Raises:
        ConfigError: when ``trainer.on_oom`` asks for what cannot be.
    """

    def __init__(
        self,
        trainer: Any,
        context: PassContext,
        loader: ResumableLoader,
        meters: RunningMeans,
        lengths: Sequence[int | None],
    ) -> None:
        settings = context.settings
        self.errors = (SkipBatch,) if settings.on_oom == "raise" else (SkipBatch, RuntimeError)
        self.batches = SkippedBatches(context, loader, meters, "train", _what_forbids(context, trainer))
        self.limit = SkipLimit(context, lengths)
        self.updates = SkippedUpdates(context, self.batches, self.limit)


def refuse_none(data_dict: Any) -> None:
    """Raise `SkipBatch` for a batch that is None."""
    if data_dict is None:
        raise SkipBatch(_NO_BATCH)


def with_skipped(means: dict[str, float], meters: RunningMeans) -> dict[str, float]:
    """Return means with the number of batches that were left out, if any was; a name of the user's stays theirs."""
    counted = meters.counted.get(SKIPPED)
    return means if counted is None else {"skipped": counted} | means


def _what_forbids(context: PassContext, trainer: Any) -> str | None:
    """Return why a training batch cannot be left out, if it cannot: other processes wait for what its step exchanges.

    Raises:
        ConfigError: when ``trainer.on_oom`` asks for it all the same.
    """
    settings, takes_turns = context.settings, len(optimizers_of(trainer.optimizer)) > 1
    reasons = {
        "several optimizers": takes_turns,
        f"trainer.parallel: {settings.parallel}": settings.parallel == "fsdp2",
        "trainer.static_graph": settings.static_graph,
        "trainer.sync_batchnorm": settings.sync_batchnorm,
        f"trainer.gradient_compression: {settings.gradient_compression}": settings.gradient_compression != "none",
        "trainer.max_skipped: 0": settings.max_skipped == 0,
    }
    why = listed(name for name, holds in reasons.items() if holds) if context.world.size > 1 else None
    if settings.on_oom == "skip" and (takes_turns or why not in {None, "none"}):
        message = f"trainer.on_oom is 'skip', which does not go with {why or 'several optimizers'}; set it to 'raise'"
        raise ConfigError(message)
    return None if why == "none" else why


def let_go_of(error: Exception, device: torch.device) -> None:
    """Free what a step held that had no memory; raise an error that is another one.

    A traceback keeps all tensors of the frames that it went through.
    """
    if isinstance(error, SkipBatch):
        return
    if not _is_out_of_memory(error):
        raise error
    error.__traceback__ = error.__context__ = error.__cause__ = None
    gc.collect()
    if device.type != "cpu":
        torch.accelerator.empty_cache()


def _is_out_of_memory(error: Exception) -> bool:
    """Tell whether an allocator had no memory; torch has a class of its own for some devices alone."""
    is_named = isinstance(error, torch.OutOfMemoryError)
    return is_named or any(part in text_of(error) for part in ("out of memory", "can't allocate memory"))
