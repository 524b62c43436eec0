"""Training in epochs of a fixed number of iterations; the schedule steps once an update."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from vision3d_engine.core.errors import ConfigError
from vision3d_engine.data.source import Begun, Place, Source, length_of
from vision3d_engine.trainers.base import BaseTrainer


class IterBasedTrainer(BaseTrainer):
    """Trains for ``trainer.max_epoch`` epochs of ``trainer.num_iters_per_epoch`` iterations.

    The data starts over as often as needed.

    Pipeline of an epoch: before_train_epoch; for each iteration before_train_step, train_step, after_backward,
    optimizer_step, after_train_step, log line, scheduler_step (once an update); then after_train_epoch.
    """

    def __init__(self, cfg: Any = None) -> None:
        super().__init__(cfg)
        self._stream: Iterator[tuple[Place, Any]] | None = None
        self._streamed: Source | None = None

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

    def _train_batches(self) -> tuple[Iterable[tuple[Place, Any]], int | None]:
        number = self.num_iters_per_epoch
        if self._stream is None or self._streamed is not self._train_source():
            self._stream = self._endless()
        return islice(self._stream, number - self._progress.trained), number

    def _endless(self) -> Iterator[tuple[Place, Any]]:
        """Return the batches from where the run is, without end; an exchanged loader begins a new stream."""
        progress, world = self._progress, self._session.world
        if self._streamed is not None:
            progress.stream_epoch, progress.stream_start = progress.place[0] + 1, progress.total_steps
            progress.place = (progress.stream_epoch, 0)
        self._streamed = self._train_source()
        begun = Begun(progress.stream_epoch, progress.total_steps - progress.stream_start, progress.place)
        return self._streamed.stream(lambda number: self._data_seed("train", number), begun, world.rank, world.size)

    def _schedule_after_step(self, updated: bool) -> None:
        if updated:
            self.scheduler_step()

    def _schedule_after_epoch(self) -> None:
        pass
