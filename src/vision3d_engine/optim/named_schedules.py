"""Several schedules by name, which the engine treats as one."""

from typing import Any

from vision3d_engine.core.named_parts import NamedParts
from vision3d_engine.optim.schedule import move_on


class NamedSchedules(NamedParts):
    """Schedules by name; their states are by name.

    Attributes:
        elsewhere: names of those that step at another moment than the trainer's own.
    """

    kind = "scheduler"

    def __init__(self) -> None:
        super().__init__()
        self.elsewhere: set[str] = set()

    def step(self) -> None:
        """Move on those that step at the trainer's own moment."""
        for name, schedule in self.parts.items():
            if name not in self.elsewhere:
                move_on(schedule)


def schedules_of(scheduler: Any) -> dict[str | None, Any]:
    """Return schedules by name; the only one, which has none, under None; none when there is none."""
    if isinstance(scheduler, NamedSchedules):
        return {**scheduler.parts}
    return {} if scheduler is None else {None: scheduler}
