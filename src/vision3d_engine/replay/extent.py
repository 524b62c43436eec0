"""How far a run has come: a step that it has not made is refused before anything is trained for it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vision3d_engine.replay.plan import Target
from vision3d_engine.replay.starting import newest_counters
from vision3d_engine.run.run_folder import STEPS, checkpoints_of, logs_of
from vision3d_engine.writers.step_values import step_lines


@dataclass(frozen=True)
class Extent:
    """How far a run has come, by what it has recorded of its steps, and by its newest checkpoint.

    Attributes:
        steps: how many steps it is known to have made.
        begins: by epoch, steps of the run before it, of the epochs of which a step is recorded.
        longest: by epoch, its last iteration that is recorded.
        unrecorded: so many more steps it may have made, which the next log line would have recorded.
    """

    steps: int
    begins: Mapping[int, int]
    longest: Mapping[int, int]
    unrecorded: int

    @classmethod
    def of(cls, settings: Any) -> "Extent":
        """Return how far the run has come that lies in the folder of these settings."""
        begins, longest, steps = {}, {}, 0
        for line in step_lines(logs_of(settings.exp) / STEPS):
            last = max(line.steps, default=line.before)
            begins[line.epoch], steps = line.before, max(steps, last)
            longest[line.epoch] = max(longest.get(line.epoch, 0), last - line.before)
        counters = newest_counters(checkpoints_of(settings.exp))
        saved = counters.get("total_steps", 0)
        is_through = saved >= steps and _has_ended(counters, settings.trainer)
        return cls(max(steps, saved), begins, longest, 0 if is_through else settings.trainer.log_steps)

    def refusal(self, target: Target) -> str | None:
        """Return why a step is none of the run; None if it may be one."""
        epoch, iteration = target.epoch or 0, target.iteration or 0
        if epoch in self.begins and epoch < max(self.begins) and iteration > (length := self._length(epoch)):
            return f"replay got {target}; epoch {epoch} has {length} iterations"
        if not self.begins or (target.step or self._first_step(epoch, iteration)) <= self.steps + self.unrecorded:
            return None
        newest = max(self.begins)
        where = f"of epoch {newest} iteration {self.longest[newest]} is the last that it has recorded"
        return f"replay got {target}; the run has made {self.steps} steps ({where}). Expected is one of these{_ANOTHER}"

    def _length(self, epoch: int) -> int:
        """Return how many iterations an epoch has that others follow."""
        return max(self.longest[epoch], self.begins.get(epoch + 1, 0) - self.begins[epoch])

    def _first_step(self, epoch: int, iteration: int) -> float:
        """Return which step of the run an iteration is, or, where that is not known, the least that it can be."""
        newest = max(self.begins)
        if epoch > newest + 1:
            return math.inf
        return self.begins.get(epoch, self.steps if epoch > newest else 0) + iteration


def _has_ended(counters: Mapping[str, Any], trainer: Any) -> bool:
    """Tell whether counters are those of a run that was trained to its end."""
    if trainer.max_updates is not None and counters.get("updates", 0) >= trainer.max_updates:
        return True
    is_trained = counters.get("is_trained", False) or not counters.get("is_open", True)
    return is_trained and trainer.max_epoch is not None and counters["epoch"] >= trainer.max_epoch


def refusal(target: Target, settings: Any) -> str | None:
    """Return why there is no such step; None if there may be one.

    Args:
        target: the step.
        settings: those of the script, which say where its run lies.
    """
    extent = Extent.of(settings)
    if not (extent.steps or (settings.exp.output_dir / "env.json").exists()):
        return _NO_RUN.format(target, settings.exp.output_dir)
    return extent.refusal(target)


_ANOTHER = "; for a step of another trainer of the script, its run folder: --run FOLDER"
_NO_RUN = (
    "replay got {}; there is no run in '{}': no step is recorded there, and no checkpoint that a run goes on from. "
    "Expected are, behind --, the arguments that the run had, and the folder in which it was started"
)
