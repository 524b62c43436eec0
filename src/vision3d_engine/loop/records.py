"""Records of single samples, gathered from all processes in the order of the data set."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from vision3d_engine.distributed.world import World


class SampleRecords:
    """What validation and test steps keep of each sample of a pass.

    Args:
        world: the processes.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._records: dict[tuple[int, int], list[Any]] = {}

    def clear(self) -> None:
        """Forget the records of the pass before."""
        self._records = {}

    @contextmanager
    def put_aside(self) -> Iterator[None]:
        """Keep what there is apart from the records of a block."""
        kept, self._records = self._records, {}
        yield
        self._records = kept

    def add(self, records: Iterable[Any], batch: int) -> None:
        """Keep the records of a batch of this process, counted from 1: batch k of all is with process k mod n."""
        self._records.setdefault((batch, self._world.rank), []).extend(records)

    def gather(self) -> list[Any]:
        """Return the records of all processes on the main one, elsewhere an empty list; waits for all processes."""
        gathered = self._world.gather(self._records)
        if not self._world.is_main:
            return []
        merged = {place: records for part in gathered for place, records in part.items()}
        return [record for place in sorted(merged) for record in merged[place]]
