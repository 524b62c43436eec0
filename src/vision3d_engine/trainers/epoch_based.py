"""Training in epochs over the whole training set; the schedule steps once an epoch."""

from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import Any

from vision3d_engine.data.exact_length import at_most
from vision3d_engine.data.resumable_loader import ResumableLoader
from vision3d_engine.loop.train_pass import Batches
from vision3d_engine.trainers.base import BaseTrainer


class EpochBasedTrainer(BaseTrainer):
    """Trains for ``trainer.max_epoch`` epochs, each over the whole training set.

    Pipeline of an epoch: before_train_epoch; for each iteration before_train_step, train_step, after_backward,
    optimizer_step, after_train_step, log line; then scheduler_step, after_train_epoch.
    """

    _schedule_follows = "epoch"

    def _lengths(self, settings: Any) -> list[int | None]:
        return self._lengths_from(0, settings)

    def _lengths_from(self, first: int, settings: Any) -> list[int | None]:
        """Return the steps of an epoch whose batch 0 goes to a process, in rank order."""
        return self._context.world.gather(at_most(self._run.train_data().steps(first), settings.limit_batches))

    def _open_data(self, loader: ResumableLoader) -> tuple[list[int | None], Callable[[int], Batches]]:
        loader.announce(self.epoch)
        return self._lengths_from(self._progress.first, self._context.settings), partial(self._read, loader)

    def _read(self, loader: ResumableLoader, done: int) -> Batches:
        """Return what is left of the epoch when so many steps are done."""
        limit = self._context.settings.limit_batches
        seed, first = self._context.data_seed("train", self.epoch), self._progress.first
        batches = loader.batches(seed, self.epoch, loader.own_batches(done, first), first)
        return islice(batches, None if limit is None else max(limit - done, 0))
