"""The counters of a run as rows of numbers say them, the samples among them, and where a point of a curve lies."""

from collections.abc import Callable, Iterable

from vision3d_engine.core.errors import ConfigError
from vision3d_engine.data.resumable_loader import ResumableLoader
from vision3d_engine.distributed.coordination.reductions import Sums
from vision3d_engine.loop.progress import Progress

_NAME = "training samples of a process"
_TOTALS = {"batches": "total_steps", "updates": "updates", "samples": "samples"}


class Counters:
    """Says how far a run is, over all processes.

    A step adds the samples of its batch to those of its process (``progress.own_samples``). Over all processes they are
    added up wherever numbers are: the sum travels with the means of a log line, an epoch or a validation.

    Args:
        progress: the counters that are saved.
        add_up: returns the sums of all processes (``World.named_sums``).
        size: number of processes.
        axis: the setting ``trainer.curve_axis``.
    """

    def __init__(self, progress: Progress, add_up: Callable[[Sums], Sums], size: int, axis: str | None) -> None:
        self._progress, self._add_up, self._size, self._axis = progress, add_up, size, axis
        self._summed_at = 0

    def sum_up(self, sums: Sums) -> Sums:
        """Return the sums of all processes, and count their samples with them; to be called by all processes."""
        own = self.own_samples
        summed = self._add_up(sums if own is None else sums | {_NAME: (1.0, float(own), 0.0)})
        known, samples, _ = summed.pop(_NAME, (0.0, 0.0, 0.0))
        self._count(int(samples) if known == self._size else None)
        return summed

    def _count(self, samples: int | None) -> None:
        self._progress.samples, self._summed_at = samples, self._progress.total_steps

    @property
    def own_samples(self) -> int | None:
        """Training samples that this process counts; those of all processes are the run's. None when not known."""
        return self._progress.own_samples if self._progress.knows_samples else None

    @property
    def samples(self) -> int | None:
        """Training samples of all processes since the beginning: of one process now, of several at the last sum."""
        return self.own_samples if self._size == 1 else self._progress.samples

    def take(self, shares: Iterable[int | None]) -> None:
        """Count the samples of all processes, given what each of them counts."""
        shares = list(shares)
        self._count(None if None in shares else sum(share or 0 for share in shares))

    def restore(self, samples: int | None, is_main: bool) -> None:
        """Go on from a checkpoint's samples, which the main process counts, whatever the number of processes was."""
        progress = self._progress
        progress.knows_samples, progress.own_samples = samples is not None, (samples or 0) if is_main else 0
        self._count(samples)

    def follow(self, loader: ResumableLoader) -> None:
        """Count the samples of a loader, or no longer know their number; `check` is made before."""
        self.check(loader)
        self._progress.knows_samples = self._knows(loader)

    def check(self, loader: ResumableLoader) -> None:
        """Refuse curves over samples whose number is not known.

        Raises:
            ConfigError: saying why it is not.
        """
        if self._axis == "samples" and not self._knows(loader):
            raise ConfigError(_UNKNOWN.format(loader.name))

    def _knows(self, loader: ResumableLoader) -> bool:
        return self._progress.knows_samples and self._progress.counts_samples and loader.knows_sizes

    def row(self) -> dict[str, int]:
        """Return the counters for a row of numbers; ``samples`` is left out where it is not known."""
        progress, samples = self._progress, self.samples
        found = {"epoch": progress.epoch, "total_steps": progress.total_steps, "updates": progress.updates}
        return found if samples is None else found | {"samples": samples}

    def step_of(self, phase: str, by_steps: bool = False) -> int:
        """Return where a point of a phase lies on the axis of its curve.

        Args:
            phase: ``"train"`` or ``"val"``.
            by_steps: validations are counted in steps, and not in epochs.
        """
        if self._axis is None:
            return self._progress.epoch if phase == "val" and not by_steps else self._progress.total_steps
        return self.row()[_TOTALS[self._axis]]

    def metadata(self) -> dict[str, int]:
        """Return what every checkpoint says about its moment; of samples only what is known exactly."""
        is_exact = self._size == 1 or self._summed_at == self._progress.total_steps
        return {name: number for name, number in self.row().items() if is_exact or name != "samples"}


_UNKNOWN = (
    "trainer.curve_axis is 'samples', but their number is not known: the {} does not say how many samples its batches "
    "hold, or trainer.means is 'batches', or the run goes on from a checkpoint that does not tell. Expected: a loader "
    "of build_dataloader or a DataLoader over a data set with indices. Or choose 'batches' or 'updates'"
)
