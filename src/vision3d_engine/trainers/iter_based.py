"""Training in epochs of a fixed number of iterations; the schedule steps once an update."""

from collections.abc import Iterable
from itertools import islice
from typing import Any

from vision3d_engine.core.errors import ConfigError
from vision3d_engine.data.cycle_loader import CycleLoader, length_of
from vision3d_engine.trainers.base import BaseTrainer


class IterBasedTrainer(BaseTrainer):
    """Trains for ``trainer.max_epoch`` epochs of ``trainer.num_iters_per_epoch`` iterations.

    The data starts over as often as needed.

    Pipeline of an epoch: before_train_epoch; for each iteration before_train_step, train_step, after_backward,
    optimizer_step, after_train_step, log line, scheduler_step (once an update); then after_train_epoch.
    """

    def __init__(self, cfg: Any = None) -> None:
        super().__init__(cfg)
        self._stream: CycleLoader | None = None

    @property
    def num_iters_per_epoch(self) -> int:
        """Iterations of an epoch: the setting, or the length of the training loader.

        Raises:
            ConfigError: when neither is known.
        """
        number = self._session.settings.trainer.num_iters_per_epoch or length_of(self.train_loader)
        if number is None:
            message = "cfg.trainer.num_iters_per_epoch is missing, and the training loader does not know its length"
            raise ConfigError(message)
        return number

    def _train_batches(self) -> tuple[Iterable[Any], int | None]:
        if self._stream is None:
            rounds = self.total_steps // (length_of(self.train_loader) or self.num_iters_per_epoch)
            self._stream = CycleLoader(self.train_loader, rounds)
        return islice(self._stream, self.num_iters_per_epoch), self.num_iters_per_epoch

    def _schedule_after_step(self, updated: bool) -> None:
        if updated:
            self.scheduler_step()

    def _schedule_after_epoch(self) -> None:
        pass
