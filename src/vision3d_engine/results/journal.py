"""What is done of a test: each process of each attempt adds one line a batch to a file of its own.

A line is written once the files of its batch are on the disk, with a checksum. One that is not whole, since its process
was killed or the disk has lost it, counts as not written: its batch is done again. Batches have the same numbers on any
number of processes.
"""

import json
import zlib
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vision3d_engine.core.files import GrowingFile, atomic_write

Line = dict[str, Any]
"""``batch``, its number from 0; ``opened``, how many cases it held; ``skipped``, how often something was left out;
``files``; ``cases``: dicts of ``name``, ``index`` (None where it is not known), ``values``, ``weights`` (one number, or
a dict by key); ``records``, where there are some: of the script, as `plain_records.written` returns them."""


# The end of the name of a state's file, and what the first line of a journal says.
_STATE, _HAS_STATE = ".state", "has_state"


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
        self.attempt = attempt
        self.path = folder / f"attempt-{attempt:04d}-rank-{rank}.jsonl"
        self._file = GrowingFile(self.path)
        self._has_head = False
        self._count = 0
        self._state: Path | None = None

    def add(self, lines: Sequence[Line], state: bytes | None = None) -> None:
        """Add lines, whole ones, and the state of what else was counted in all lines so far: always one, or never.

        With a state, lines count as written once a state covers them: its file tells by its name how many lines it
        covers, so that both appear at once.

        Raises:
            OSError: when the disk is full.
        """
        head = [] if self._has_head else [{_HAS_STATE: state is not None}]
        self._file.add(b"".join(map(_written, [*head, *lines])))
        self._has_head = True
        self._count += len(lines)
        if state is not None:
            self._file.sync()  # a state must not be on the disk before what it covers
            self._save(state)

    def _save(self, state: bytes) -> None:
        path = self.path.with_suffix(f".{self._count}{_STATE}")
        with atomic_write(path) as file:
            file.write(state)
        old, self._state = self._state, path
        if old is not None:
            old.unlink()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def files_in(folder: Path) -> list[Path]:
    """Return all files of journals."""
    return sorted(folder.glob("attempt-*"))


class Journals:
    """The journals of all attempts of a test, read line by line.

    Args:
        folder: where they lie.
        before: only of the attempts before this one; None for all.
    """

    def __init__(self, folder: Path, before: int | None = None) -> None:
        paths = sorted(folder.glob("attempt-*.jsonl"))
        self.paths = [path for path in paths if before is None or _attempt_of(path) < before]

    @property
    def attempts(self) -> int:
        """Number of the last attempt, 0 without one."""
        return max(map(_attempt_of, self.paths), default=0)

    def states(self) -> list[Path]:
        """Return the newest state of each journal that has one."""
        return [state for path in self.paths if (state := _newest_state(path)) is not None and _is_complete(path)]

    def damaged(self) -> list[Path]:
        """Return those of which lines that were written are lost."""
        return [path for path in self.paths if not _is_complete(path) or any(line is None for _, line in _lines(path))]

    def __iter__(self) -> Iterator[tuple[Where, Line]]:
        """Yield each batch that is done, once, with the place of its line."""
        seen: set[int] = set()
        for number, path in enumerate(self.paths):
            for offset, line in _lines_that_count(path):
                if line["batch"] not in seen:
                    seen.add(line["batch"])
                    yield Where(number, offset), line

    def done(self) -> dict[int, int]:
        """Return how many cases each batch held that is done, by its number."""
        return {line["batch"]: line["opened"] for _, line in self}

    def records(self) -> dict[int, Any]:
        """Return the records of the batches that are done and have some, by their numbers."""
        return {line["batch"]: line["records"] for _, line in self if line.get("records")}

    def files(self) -> Iterator[str]:
        """Yield the files of the batches that are done."""
        return (name for _, line in self for name in line["files"])

    def file_of_two(self) -> str | None:
        """Return a file that was written for two samples, of which one has lost it; None where there is none."""
        hashes, counts = np.unique(np.fromiter(map(hash, self.files()), np.int64), return_counts=True)
        twice = set(hashes[counts > 1].tolist())
        return next((name for name in self.files() if hash(name) in twice), None) if twice else None


def _attempt_of(path: Path) -> int:
    return int(path.name.split("-")[1])


def _newest_state(journal: Path) -> Path | None:
    return max(journal.parent.glob(f"{journal.stem}.*{_STATE}"), key=_covered_by, default=None)


def _covered_by(state: Path | None) -> int:
    """Return how many lines a state covers."""
    return 0 if state is None else int(state.suffixes[-2][1:])


def _is_complete(journal: Path) -> bool:
    """Tell whether all lines are there that the newest state covers, which counts those that are lost too."""
    covered = _covered_by(_newest_state(journal))
    return covered == 0 or sum(line is not None for _, line in islice(_lines(journal), 1 + covered)) == 1 + covered


def _lines_that_count(path: Path) -> Iterator[tuple[int, Line]]:
    lines = _lines(path)
    _, head = next(lines, (0, None))
    if head is None or not _is_complete(path):
        return
    most = _covered_by(_newest_state(path)) if head[_HAS_STATE] else None
    for offset, line in islice(lines, most):
        if line is not None:
            yield offset, line


def _lines(path: Path) -> Iterator[tuple[int, Line | None]]:
    """Yield the lines of a file, each with its offset; None for a damaged one. The last one may be torn: it is none."""
    offset = 0
    with path.open("rb") as file:
        for text in file:
            if text.endswith(b"\n"):
                yield offset, parsed(text)
            offset += len(text)


def _written(line: Line) -> bytes:
    text = json.dumps(line).encode()
    return b"[%d, %s]\n" % (zlib.crc32(text), text)


def parsed(text: bytes) -> Line | None:
    """Return a line, or None for one that is not as it was written."""
    checksum, _, line = text.removeprefix(b"[").removesuffix(b"]\n").partition(b", ")
    return json.loads(line) if checksum == b"%d" % zlib.crc32(line) else None
