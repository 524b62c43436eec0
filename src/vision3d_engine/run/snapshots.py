"""Full checkpoints that a replay of a step can start from (``trainer.replay_every``)."""

import contextlib
import math
from collections.abc import Callable
from pathlib import Path

from vision3d_engine.checkpoint.retention import outdated_snapshots, snapshot_name
from vision3d_engine.core.durations import parse_iterations
from vision3d_engine.loop.context import PassContext


class Snapshots:
    """Writes a checkpoint every so many training batches, at the update that comes then, and removes outdated ones.

    Args:
        context: settings and counters.
        folder: the checkpoint folder.
        save: writes a file with all that a resume needs, given its name and what is called once it is on the disk.

    Attributes:
        due_at: number of total steps from which on an update shall call `write`.
    """

    def __init__(self, context: PassContext, folder: Path, save: Callable[..., None]) -> None:
        self._context, self._folder, self._save = context, folder, save
        self._every = parse_iterations(every) if (every := context.settings.replay_every) else None
        self.due_at = math.inf

    def begin(self) -> None:
        """Count from where the run stands, which may be earlier than before."""
        if self._every is not None:
            self.due_at = min(self.due_at, self._next(self._every))

    def _next(self, every: int) -> int:
        return (self._context.progress.total_steps // every + 1) * every

    def write(self) -> None:
        """Write one; to be called by all processes at the same update."""
        step = self._context.progress.total_steps
        self._save(snapshot_name(step), then=lambda: self._remove_outdated(step))
        self.due_at = math.inf
        self.begin()

    def _remove_outdated(self, newest: int) -> None:
        """Remove files once the newest is on the disk; one that cannot be removed is tried again the next time."""
        names = [path.name for path in self._folder.glob("*.pth")]
        for name in outdated_snapshots(names, newest) if self._context.world.is_main else ():
            with contextlib.suppress(OSError):
                (self._folder / name).unlink()
