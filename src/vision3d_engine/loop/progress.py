"""How far a run is: the counters that are saved."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from vision3d_engine.data.dealing import StepSize
from vision3d_engine.data.endless_stream import Place, StreamPosition


@dataclass
class Progress:
    """Counters of a training run. ``epoch`` and ``iteration`` are counted from 1; 0 means that none has started.

    Attributes:
        epoch: the epoch that is running or was the last to run.
        iteration: the batch within the pass that is running.
        total_steps: training batches seen since the beginning.
        updates: windows of batches that were closed since the beginning, each with a step of the optimizer unless its
            weights were zero.
        is_open: the epoch has started and its validation has not ended.
        trained: training batches of the open epoch that are behind us.
        validated: total steps at the latest validation that has ended; -1 before the first.
        is_trained: all of them are, and the schedule has followed; the validation is still to come.
        skipped: training batches of the epoch that all processes have left out, up to the last log line.
        skipped_updates: updates of the epoch that were skipped since gradients were not finite, up to then.
        told_updates: the same of the whole run; -1 where a file of an older engine does not tell.
        place: epoch of the data, batch in it and what it weighs, of the last training batch of this process.
        stream_epoch: epoch of the data with which an endless stream started.
        stream_start: training batches that were behind us then.
        first: process that batch 0 of the open epoch goes to: 0 unless a run goes on with another number of processes.
        stream_first: the same of an endless stream.
        samples: training samples of all processes, as of the last sum over them; None when that is not known.
        own_samples: those that this process counts: of its own batches, and the main one those before a resume.
        knows_samples: whether the number of samples of every batch was known.
        counts_samples: whether means are over samples, where their number is known, or over batches.
        weight_scale: power of two by which ``loss_weight`` is multiplied; a tensor while weights are on the device.
    """

    epoch: int = 0
    iteration: int = 0
    total_steps: int = 0
    updates: int = 0
    is_open: bool = False
    trained: int = 0
    is_trained: bool = False
    skipped: int = 0
    skipped_updates: int = 0
    told_updates: int = 0
    validated: int = -1
    place: Place = (1, 0, 1)
    stream_epoch: int = 1
    stream_start: int = 0
    first: int = 0
    stream_first: int = 0
    samples: int | None = 0
    own_samples: int = 0
    knows_samples: bool = True
    counts_samples: bool = True
    weight_scale: Any = 1.0

    def open_epoch(self) -> None:
        """Open the next epoch, unless one is open."""
        if not self.is_open:
            self.epoch += 1
            self.trained = self.first = self.skipped = self.skipped_updates = 0
            self.is_trained = False
            self.is_open = True

    def restart_stream(self) -> None:
        """Let the endless stream start anew with the next epoch of the data."""
        self.stream_epoch, self.stream_start = self.place[0] + 1, self.total_steps
        self.place, self.stream_first = (self.stream_epoch, 0, 1), 0

    def deal_anew(self, before: StepSize, now: StepSize, *, keeps_iterations: bool) -> None:
        """Count steps of another size, after which as much of the data is done as before.

        Args:
            before: what a step took.
            now: what a step takes.
            keeps_iterations: the iterations of an epoch are a number of the script's, whatever they take of the data;
                else as much of the epoch is done as before. ``first`` is then of use for batches that are counted by
                epochs; one of a stream ends that many batches early.
        """
        taken, self.stream_first = before.deal(self.total_steps - self.stream_start, self.stream_first, now)
        self.stream_start = self.total_steps - taken
        if not keeps_iterations:
            self.trained, self.first = before.deal(self.trained, self.first, now)

    def stream_position(self) -> StreamPosition:
        """Return where the endless stream stands."""
        taken = self.total_steps - self.stream_start
        return StreamPosition(self.stream_epoch, taken, self.place, self.stream_first)

    def state_dict(self) -> dict[str, Any]:
        """Return all counters."""
        return asdict(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the counters that are there; those of an older file, which has fewer, keep their values."""
        for field in fields(self):
            if field.name in state:
                setattr(self, field.name, state[field.name])
        if "epoch" in state:
            self.told_updates = state.get("told_updates", -1)
        self.weight_scale = float(self.weight_scale)
        epoch, number, weight = map(int, (*self.place, 1)[:3])  # older files have no weight
        self.place = (epoch, number, weight)
