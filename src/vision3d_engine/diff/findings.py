"""What was found of two runs: the first step at which their numbers differ, and what differed there."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from vision3d_engine.diff.order import BatchOrder
from vision3d_engine.diff.recorded import Recorded, read_recorded
from vision3d_engine.diff.rows import Rows, rows_of
from vision3d_engine.diff.tables import FirstDifference, TableComparison, compare_tables
from vision3d_engine.report.run_data import section


@dataclass(frozen=True)
class Findings:
    """Two runs side by side.

    Attributes:
        a: the first run.
        b: the second.
    """

    a: Recorded
    b: Recorded

    @classmethod
    def of(cls, a: Path, b: Path) -> "Findings":
        """Read two runs."""
        return cls(read_recorded(a), read_recorded(b))

    @cached_property
    def rows(self) -> Rows:
        """What differs in settings, environment and data."""
        return rows_of(self.a, self.b)

    @property
    def is_all_recorded(self) -> bool:
        """Whether both have recorded settings, environment and data."""
        runs = (self.a.run, self.b.run)
        return all(run.settings and section(run.environment, "data") for run in runs)

    # ------------------------------------------------------------------------------------------- numbers

    @property
    def are_exact(self) -> bool:
        """Whether both have recorded single steps; else the means of log lines are compared."""
        return bool(self.a.steps and self.b.steps)

    @cached_property
    def numbers(self) -> TableComparison:
        """What the steps have returned; without that what log lines say, if both runs have as long intervals."""
        if self.are_exact:
            return compare_tables(self.a.steps, self.b.steps)
        intervals = [section(each.run.settings, "trainer").get("log_steps") for each in (self.a, self.b)]
        return compare_tables(*((each.means() if len(set(intervals)) == 1 else {}) for each in (self.a, self.b)))

    @cached_property
    def validations(self) -> TableComparison:
        """What validations have returned."""
        return compare_tables(self.a.validations(), self.b.validations())

    @cached_property
    def differences(self) -> list[FirstDifference]:
        """Where each number differs first, the earliest before others."""
        both = [*self.numbers.differences, *self.validations.differences]
        return sorted(both, key=lambda each: each.step)

    @property
    def are_same(self) -> bool:
        """Whether there is something to compare, and all of it has the same bits."""
        return bool(self.numbers.steps) and not self.differences

    @property
    def step(self) -> int | None:
        """The first step that has returned other numbers; None without one."""
        return next((each.step for each in self.numbers.differences), None)

    @property
    def before(self) -> int:
        """How many steps before it both have recorded, with the same bits."""
        return len([step for step in self.numbers.steps if self.step is None or step < self.step])

    # ------------------------------------------------------------------------------------------- what differed there

    @cached_property
    def orders(self) -> tuple[BatchOrder, BatchOrder]:
        """In which order each has read its data."""
        return BatchOrder(self.a), BatchOrder(self.b)

    @cached_property
    def batches(self) -> list[list[Any] | None]:
        """The samples of each run's batch in this step; None where they are not known."""
        return [None if self.step is None else order.samples(self.step) for order in self.orders]

    @property
    def is_other_batch(self) -> bool:
        """Whether it is known that the batches hold other samples."""
        return None not in self.batches and self.batches[0] != self.batches[1]

    @property
    def is_same_batch(self) -> bool:
        """Whether it is known that the batches hold the same samples."""
        return None not in self.batches and not self.is_other_batch

    @property
    def new_samples(self) -> list[Any]:
        """The samples of that batch, if it is known, the same, and of the first epoch of the data."""
        is_new = self.step is not None and self.is_same_batch and self.orders[0].epoch(self.step) == 1
        return (self.batches[0] or []) if is_new else []

    @cached_property
    def rates(self) -> TableComparison:
        """The learning rates of log lines."""
        return compare_tables(self.a.rates(), self.b.rates())

    @property
    def rate(self) -> FirstDifference | None:
        """The first learning rate that differs, if it did so by the log line that follows the step before."""
        first = next(iter(self.rates.differences), None)
        if first is None or self.step is None:
            return first
        last = next((step for step in self.rates.steps if step >= self.step), self.step)
        return first if first.step <= last else None
