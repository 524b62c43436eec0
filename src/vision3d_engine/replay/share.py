"""The share of one process in a step of several, replayed by one process that makes the steps of all in turn.

Batch k of an epoch goes to process ``k % n``, so n processes train like one that accumulates n batches: what a step of
it draws is drawn as the process did whose batch it is.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from vision3d_engine.core.seeding import StepSeeds, derived_seed
from vision3d_engine.replay.exchanges import refuse_exchange, refusing_exchanges
from vision3d_engine.replay.plan import Plan
from vision3d_engine.replay.probe import StepProbe
from vision3d_engine.replay.starting import Start

TOLERANCE = 1e-3


class Moment(NamedTuple):
    """Where a step stands in the run of several processes."""

    total_steps: int
    epoch: int
    iteration: int


class ShareProbe(StepProbe):
    """Looks into the share of one process.

    Args:
        plan: which step, and whose share.
        start: where the replay has started, at a checkpoint of several processes.
        recorded: by total steps, what the main process has returned.
        seed: that of the run.
    """

    def __init__(self, plan: Plan, start: Start, recorded: Mapping[int, Mapping[str, float]], seed: int) -> None:
        rank = plan.rank or 0
        super().__init__(plan, start, {} if rank else recorded, 0 if start.is_next else TOLERANCE)
        self._of_run = Moment(start.step, 0, 0)
        self._seed, self._rank, self._replayed = seed, 0, rank

    @property
    def _moment(self) -> Moment:
        return self._of_run

    def _is_here(self) -> bool:
        return super()._is_here() and self._rank == self._replayed

    def _title(self) -> str:
        return f"share of process {self._rank} of {self._start.processes}"

    def _begin(self) -> None:
        """Refuse what follows from more than one share, before the first step and in all of them."""
        self.owner.train_step = refusing_exchanges(self._plan, self.owner.train_step)
        refuse_exchange(self._plan, self.owner)
        if self.owner._run.resume_state.asked.counts_iterations:  # noqa: SLF001  the engine's own
            self._plan.refuse(_COUNTS)

    def _kept(self, samples: Any) -> dict[str, Any]:
        return {**super()._kept(samples), "drawn": [self._rank, self._of_run.iteration]}

    def before_train_step(self, epoch: int, iteration: int, data_dict: Any) -> None:
        """Let the step draw what that of its process drew, and begin to look, if this is the one."""
        if not self._of_run.iteration:
            self._begin()
        before, self._rank = divmod(iteration - 1, self._start.processes)
        self._of_run = Moment(self._of_run.total_steps + (not self._rank), epoch, before + 1)
        base = derived_seed(self._seed, "train", epoch, self._rank)
        StepSeeds(base, self.owner.device).seed(before + 1)
        super().before_train_step(epoch, iteration, data_dict)


_COUNTS = (
    "replay got one process for a step of several in epochs of num_iters_per_epoch iterations, which end elsewhere "
    "there. Expected is the same number of processes: leave out --rank and --processes"
)
