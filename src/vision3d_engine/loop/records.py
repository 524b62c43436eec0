"""Records of single samples, gathered from all processes in the order of the data set."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from vision3d_engine.core.errors import RegistrationError, did_you_mean, listed
from vision3d_engine.distributed.world import World


class SampleRecords:
    """What validation and test steps keep of each sample of a pass, by the sets of which there may be several.

    Args:
        world: the processes.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._sets: dict[str | None, dict[tuple[int, int], list[Any]]] = {}
        self._open: dict[tuple[int, int], list[Any]] = {}
        self.clear()

    def clear(self) -> None:
        """Forget all records."""
        self._sets = {}
        self.open(None)

    def open(self, name: str | None) -> None:
        """Let what comes be of a set; all processes open the same ones in the same order."""
        self._open = self._sets.setdefault(name, {})

    @contextmanager
    def put_aside(self) -> Iterator[None]:
        """Keep what there is apart from the records of a block."""
        kept = self._sets, self._open
        self.clear()
        yield
        self._sets, self._open = kept

    def add(self, records: Iterable[Any], batch: int) -> None:
        """Keep the records of a batch of this process, counted from 1: batch k of all is with process k mod n."""
        self._open.setdefault((batch, self._world.rank), []).extend(records)

    def gather(self, name: str | None = None) -> list[Any]:
        """Return the records of all processes on the main one, elsewhere an empty list; waits for all processes.

        Args:
            name: of the set; None for all, one after the other.

        Raises:
            RegistrationError: for a name that no set has.
        """
        chosen = list(self._sets.values()) if name is None else [self._named(name)]
        gathered = self._world.gather(chosen)
        if not self._world.is_main:
            return []
        return [record for parts in zip(*gathered, strict=True) for record in _in_order(parts)]

    def _named(self, name: str) -> dict[tuple[int, int], list[Any]]:
        if name not in self._sets:
            known = [each for each in self._sets if each is not None]
            message = f"gather_records('{name}'): no validation set is called so{did_you_mean(name, known)} "
            raise RegistrationError(message + f"(registered: {listed(known)})")
        return self._sets[name]


def _in_order(parts: Iterable[dict[tuple[int, int], list[Any]]]) -> list[Any]:
    """Return the records of a set from what each process has of it."""
    merged = {place: records for part in parts for place, records in part.items()}
    return [record for place in sorted(merged) for record in merged[place]]
