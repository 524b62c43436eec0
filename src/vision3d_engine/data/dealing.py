"""What one step of all processes takes of the data, and how the rest of it is dealt to another number of processes."""

from collections.abc import Mapping
from typing import Any, NamedTuple

_AMOUNTS = ("samples_per_step", "batches_per_step", "global_batch")
_NO_CHANGE: frozenset[str] = frozenset()


class StepSize(NamedTuple):
    """What a step of all processes takes: a batch for each.

    Attributes:
        key: under which name the amount stands in a fingerprint.
        processes: number of processes.
        batch: samples of a batch; 1 where batches are counted.
        accumulated: steps of an update.
    """

    key: str
    processes: int
    batch: int
    accumulated: int

    @classmethod
    def of(cls, fingerprint: Mapping[str, Any], processes: int) -> "StepSize | None":
        """Return what a fingerprint says of a run of so many processes; None where that is not known."""
        key = next((key for key in _AMOUNTS if fingerprint.get(key)), None)
        if key is None or not processes or fingerprint[key] < processes:
            return None
        return cls(key, processes, fingerprint[key] // processes, fingerprint.get("grad_acc_steps", 1))

    def may_become(self, now: "StepSize | None") -> frozenset[str]:
        """Return the keys of a fingerprint whose change another number of processes explains.

        With the same batches the order of an epoch is the same. So is the update if it takes as many of them; if not,
        what the accumulation is stays asked for, and so does the global batch of loaders that have one size of batches.
        """
        if now is None or (self.key, self.batch) != (now.key, now.batch) or self.processes == now.processes:
            return _NO_CHANGE
        if self.update == now.update:
            return frozenset({self.key, "grad_acc_steps"})
        return _NO_CHANGE if self.key == "global_batch" else frozenset({self.key})

    @property
    def update(self) -> int:
        """Batches of an update of all processes."""
        return self.processes * self.accumulated

    def other_updates(self, now: "StepSize") -> str | None:
        """Say that updates take another number of batches, and what would keep it; None if they do not."""
        if self.update == now.update:
            return None
        steps, rest = divmod(self.update, now.processes)
        fix = f"trainer.grad_acc_steps={steps} makes them what they were" if not rest else "their order is the same"
        message = (
            f"an update of {now.processes} processes takes {now.update} batches, one of the run took {self.update}"
        )
        return f"{message}; {fix}"

    def deal(self, steps: int, first: int, now: "StepSize") -> tuple[int, int]:
        """Return after how many steps of another size as much is done, and which process then had the first batch.

        Args:
            steps: those that are done; batch k went to process ``(k + first) % processes``, so that in the first step
                those before ``first`` had none.
            first: the process that had batch 0.
            now: the other size. What is left goes on with its process 0.
        """
        done = (steps * self.processes - first) * self.batch
        size = now.processes * now.batch
        steps = -(-done // size)
        return steps, (steps * size - done) // now.batch


def describe_changes(
    saved: Mapping[str, Any], current: Mapping[str, Any], explained: frozenset[str] = _NO_CHANGE
) -> list[str]:
    """Return one line for each part of the data that differs between a checkpoint and this run, if not explained."""
    changed = [key for key in current if key in saved and saved[key] != current[key] and key not in explained]
    return [f"{key} was {saved[key]}, is {current[key]}" for key in changed]
