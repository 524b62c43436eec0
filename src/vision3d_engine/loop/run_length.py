"""How long a run is: so many epochs or so many updates, whichever comes first."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class RunLength:
    """The length of a run as its settings say it; with the batches of an epoch one follows from the other.

    Attributes:
        max_epoch: epochs to train; None for as many as the updates take.
        max_updates: updates to make; None for as many as the epochs have.
        grad_acc_steps: batches of an update; the last one of an epoch may have fewer.
    """

    max_epoch: int | None
    max_updates: int | None
    grad_acc_steps: int

    @classmethod
    def of(cls, settings: Any) -> "RunLength":
        """Return what the settings ``trainer.*`` say."""
        return cls(settings.max_epoch, settings.max_updates, settings.grad_acc_steps)

    def epochs(self, batches: int | None) -> int | None:
        """Return in how many epochs of so many batches is trained; None where that is not known."""
        if self.max_updates is None or batches is None:
            return self.max_epoch
        return _smaller(self.max_epoch, -(-self.max_updates // self._windows(batches)))

    def updates(self, batches: int | None) -> int | None:
        """Return how many updates are made in epochs of so many batches; None where that is not known."""
        if self.max_epoch is None:
            return self.max_updates
        return None if batches is None else _smaller(self.max_updates, self.max_epoch * self._windows(batches))

    def steps_left(self, epoch: int, iteration: int, updates: int, batches: int | None) -> int | None:
        """Return how many batches follow one, if epochs have so many; None where that is not known.

        Args:
            epoch: the epoch that is running.
            iteration: the batch within it.
            updates: those that are made since the beginning of the run.
            batches: of an epoch.
        """
        if batches is None:
            return None
        by_epochs = None if self.max_epoch is None else (self.max_epoch - epoch + 1) * batches
        by_updates = None
        if self.max_updates is not None:
            done = self._windows(batches) if iteration == batches else iteration // self.grad_acc_steps
            epochs, windows = divmod(done + self.max_updates - updates, self._windows(batches))
            by_updates = epochs * batches + windows * self.grad_acc_steps
        return max((_smaller(by_epochs, by_updates) or 0) - iteration, 0)

    def _windows(self, batches: int) -> int:
        return -(-batches // self.grad_acc_steps)


def _smaller(a: int | None, b: int | None) -> int | None:
    """Return the smaller number of those that are known."""
    return min((each for each in (a, b) if each is not None), default=None)
