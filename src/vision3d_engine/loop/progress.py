"""How far a run is: the counters that are saved."""

from dataclasses import dataclass


@dataclass
class Progress:
    """Counters of a training run. ``epoch`` and ``iteration`` are counted from 1; 0 means that none has begun.

    Attributes:
        epoch: the epoch that is running or was the last to run.
        iteration: the batch within the pass that is running.
        total_steps: training batches seen since the beginning.
        updates: optimiser steps since the beginning.
    """

    epoch: int = 0
    iteration: int = 0
    total_steps: int = 0
    updates: int = 0

    def metadata(self) -> dict[str, int]:
        """Return what every checkpoint says about its moment."""
        return {"epoch": self.epoch, "total_steps": self.total_steps}
