"""Training in epochs over the whole training set; the schedule steps once an epoch."""

from collections.abc import Iterable
from typing import Any

from vision3d_engine.data.source import Place
from vision3d_engine.trainers.base import BaseTrainer


class EpochBasedTrainer(BaseTrainer):
    """Trains for ``trainer.max_epoch`` epochs, each over the whole training set.

    Pipeline of an epoch: before_train_epoch; for each iteration before_train_step, train_step, after_backward,
    optimizer_step, after_train_step, log line; then scheduler_step, after_train_epoch.
    """

    def _train_batches(self) -> tuple[Iterable[tuple[Place, Any]], int | None]:
        source, epoch = self._train_source(), self.epoch
        base, rank = self._data_seed("train", epoch), self._session.world.rank
        return source.batches(base, epoch, self._progress.trained, rank), source.length

    def _schedule_after_step(self, updated: bool) -> None:
        pass

    def _schedule_after_epoch(self) -> None:
        self.scheduler_step()
