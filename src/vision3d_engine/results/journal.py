"""What is done of a test: each process of each attempt adds one line a batch to a file of its own.

A line is written once the files of its batch are on the disk. A line that is not whole, since its process was killed,
counts as not written: its batch is done again. Batches have the same numbers on any number of processes.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from vision3d_engine.core.files import GrowingFile

Line = dict[str, Any]
"""``batch``, its number from 0; ``opened``, how many cases it held; ``skipped``, how often something was left out;
``files``; ``cases``: dicts of ``name``, ``index`` (None where it is not known), ``values``, ``weights`` (one number, or
a dict by key)."""


class Where(NamedTuple):
    """Where a line lies."""

    file: int
    offset: int


class Journal:
    """The lines of one process of one attempt.

    Args:
        folder: where the journals of a test lie.
        attempt: number of the attempt, from 1.
        rank: number of the process.
    """

    def __init__(self, folder: Path, attempt: int, rank: int) -> None:
        self.path = folder / f"attempt-{attempt:04d}-rank-{rank}.jsonl"
        self._file = GrowingFile(self.path)

    def add(self, lines: Iterable[Line]) -> None:
        """Add lines, whole ones.

        Raises:
            OSError: when the disk is full.
        """
        self._file.add("".join(json.dumps(line) + "\n" for line in lines).encode())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Journals:
    """The journals of all attempts of a test, read line by line.

    Args:
        folder: where they lie.
    """

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(folder.glob("attempt-*.jsonl"))

    @property
    def attempts(self) -> int:
        """Number of the last attempt, 0 without one."""
        return max((int(path.name.split("-")[1]) for path in self.paths), default=0)

    def __iter__(self) -> Iterator[tuple[Where, Line]]:
        """Yield each batch that is done, once, with the place of its line."""
        seen: set[int] = set()
        for number, path in enumerate(self.paths):
            for offset, line in _whole_lines(path):
                if line["batch"] not in seen:
                    seen.add(line["batch"])
                    yield Where(number, offset), line

    def done(self) -> dict[int, int]:
        """Return how many cases each batch held that is done, by its number."""
        return {line["batch"]: line["opened"] for _, line in self}

    def files(self) -> set[str]:
        """Return the files of the batches that are done."""
        return {name for _, line in self for name in line["files"]}


def _whole_lines(path: Path) -> Iterator[tuple[int, Line]]:
    offset = 0
    with path.open("rb") as file:
        for text in file:
            if (line := parsed(text)) is not None:
                yield offset, line
            offset += len(text)


def parsed(text: bytes) -> Line | None:
    """Return a line, or None for one that is not whole."""
    try:
        line = json.loads(text) if text.endswith(b"\n") else None
    except ValueError:
        return None
    return line if isinstance(line, dict) else None
