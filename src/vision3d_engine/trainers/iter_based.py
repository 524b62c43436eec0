"""Training in epochs of a fixed number of iterations; the schedule steps once an update."""

from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import Any

from vision3d_engine.core.errors import ConfigError
from vision3d_engine.data.resumable_loader import ResumableLoader
from vision3d_engine.loop.train_pass import Batches
from vision3d_engine.trainers.base import BaseTrainer


class IterBasedTrainer(BaseTrainer):
    """Trains for ``trainer.max_epoch`` epochs of ``trainer.num_iters_per_epoch`` iterations.

    The data starts over as often as needed.

    Pipeline of an epoch: before_train_epoch; for each iteration before_train_step, train_step, after_backward,
    optimizer_step, after_train_step, log line, scheduler_step (once an update); then after_train_epoch.
    """

    _schedule_follows = "update"

    def __init__(self, cfg: Any = None) -> None:
        super().__init__(cfg)
        self._streamed: Any = None

    @property
    def num_iters_per_epoch(self) -> int:
        """Iterations of an epoch: the setting, or what it takes to walk the training data once, on any process.

        Raises:
            ConfigError: when neither is known.
        """
        return self._iterations(self._context.settings)

    def _iterations(self, settings: Any) -> int:
        number = settings.num_iters_per_epoch or self._run.train_data().longest_length
        if number is None:
            message = "cfg.trainer.num_iters_per_epoch is missing, and the training loader does not know its length"
            raise ConfigError(message)
        return number

    def _lengths(self, settings: Any) -> list[int | None]:
        numbers = self._context.world.gather(self._iterations(settings))
        return [max(numbers)] * len(numbers)

    def _open_data(self, loader: ResumableLoader) -> tuple[list[int | None], Callable[[int], Batches]]:
        if self._streamed is not None and self._streamed is not loader.registered:
            self._progress.restart_stream()
        self._streamed = loader.registered
        loader.announce_after(self._progress.place)
        lengths = self._lengths(self._context.settings)
        return lengths, partial(self._stream, loader, lengths[0])

    def _stream(self, loader: ResumableLoader, number: Any, done: int) -> Batches:
        """Return what is left of the epoch; the stream is endless, so every process has as many batches."""
        seed_of = partial(self._context.data_seed, "train")
        return islice(loader.stream(seed_of, self._progress.stream_position()), max(number - done, 0))
