"""Which samples a step of a run was made with: their order is a function of what the run has recorded."""

from typing import Any

from vision3d_engine.core.seeding import data_seed
from vision3d_engine.data.loader_sets import title_of
from vision3d_engine.data.sampler import PositionSampler
from vision3d_engine.diff.recorded import Recorded
from vision3d_engine.report.run_data import section

_ORDERS = ("shuffled", "in order")


class BatchOrder:
    """The order in which the main process of a run, whose steps are recorded, has read the training data."""

    def __init__(self, recorded: Recorded) -> None:
        self._recorded = recorded
        self._data = section(section(recorded.run.environment, "data"), title_of("training"))
        self._counts = section(recorded.run.environment, "trainer").get("counts")
        self._seed = section(recorded.run.settings, "exp").get("seed")

    @property
    def unknown(self) -> str:
        """Why the order is not known; empty where it is."""
        if not self._data or self._seed is None or self._counts is None:
            return "not recorded"
        if section(self._recorded.run.settings, "trainer").get("overfit"):
            return "the same few, as trainer.overfit says"
        if self._data.get("order") not in _ORDERS or not isinstance(self._data.get("batch_size"), int):
            return f"chosen by {self._data.get('order', self._data.get('loader'))}"
        sizes = {each.processes for each in self._recorded.intervals}
        return "" if len(sizes) == 1 and 0 not in sizes else "dealt to changing numbers of processes"

    def epoch(self, step: int) -> int | None:
        """Return which epoch of the data a step was in, from 1; None where that is not known."""
        found = self._place(step)
        return found and found[0]

    def samples(self, step: int) -> list[Any] | None:
        """Return the samples of the batch of a step; None where they are not known."""
        if (place := self._place(step)) is None:
            return None
        epoch, batch = place
        return [each.index for each in self._sampler().samples(self._base(epoch), epoch, batch) or []]

    def _base(self, epoch: int) -> int:
        return data_seed(self._seed or 0, "train", epoch)

    def _place(self, step: int) -> tuple[int, int] | None:
        """Return the epoch of the data and the number of the batch in it, among those of all processes, from 0."""
        if self.unknown or (interval := self._recorded.interval(step)) is None:
            return None
        if self._counts == "epochs":
            return interval.epoch, (step - interval.before - 1) * interval.processes
        passes, batch = divmod((step - 1) * interval.processes, self._sampler().total_batches or 1)
        return passes + 1, batch

    def _sampler(self) -> PositionSampler:
        data = self._data
        options = {name: data[name] for name in ("drop_last", "repeat") if name in data}
        return PositionSampler(
            range(data["samples"]), data["batch_size"], shuffle=data["order"] == "shuffled", **options
        )
