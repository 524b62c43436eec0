"""Training in epochs over the whole training set; the schedule steps once an epoch."""

from collections.abc import Iterable
from typing import Any

from vision3d_engine.data.cycle_loader import length_of, set_epoch
from vision3d_engine.trainers.base import BaseTrainer


class EpochBasedTrainer(BaseTrainer):
    """Trains for ``trainer.max_epoch`` epochs, each over the whole training set.

    Pipeline of an epoch: before_train_epoch; for each iteration before_train_step, train_step, after_backward,
    optimizer_step, after_train_step, log line; then scheduler_step, after_train_epoch.
    """

    def _train_batches(self) -> tuple[Iterable[Any], int | None]:
        set_epoch(self.train_loader, self.epoch)
        return self.train_loader, length_of(self.train_loader)

    def _schedule_after_step(self, updated: bool) -> None:
        pass

    def _schedule_after_epoch(self) -> None:
        self.scheduler_step()
