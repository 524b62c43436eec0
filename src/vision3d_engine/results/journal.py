"""What is done of a test: each process of each attempt adds one line a batch to a file of its own.

A line is written once the files of its batch are on the disk. A line that is not whole, since its process was killed,
counts as not written: its batch is done again. Batches have the same numbers on any number of processes.
"""

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from vision3d_engine.core.files import GrowingFile, atomic_write

Line = dict[str, Any]
"""``batch``, its number from 0; ``opened``, how many cases it held; ``skipped``, how often something was left out;
``files``; ``cases``: dicts of ``name``, ``index`` (None where it is not known), ``values``, ``weights`` (one number, or
a dict by key)."""


# The first line of a journal with a state, and the end of the name of the state's file.
_HEAD, _STATE = {"has_state": True}, ".state"


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
        self._count = 0
        self._state: Path | None = None

    def add(self, lines: Sequence[Line], state: bytes | None = None) -> None:
        """Add lines, whole ones, and the state of what else was counted in all lines so far.

        With a state, lines count as written once a state covers them: its file tells by its name how many lines it
        covers, so that both appear at once.

        Raises:
            OSError: when the disk is full.
        """
        head = [_HEAD] if state is not None and self._count == 0 else []
        self._file.add("".join(json.dumps(line) + "\n" for line in [*head, *lines]).encode())
        self._count += len(lines)
        if state is not None:
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


def _state_of(journal: Path) -> Path | None:
    """Return the newest state of a journal."""
    return max(journal.parent.glob(f"{journal.stem}.*{_STATE}"), key=_covered_by, default=None)


def _covered_by(state: Path | None) -> int:
    """Return how many lines a state covers."""
    return 0 if state is None else int(state.suffixes[-2][1:])


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
        return [path for path in map(_state_of, self.paths) if path is not None]

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

    def files(self) -> set[str]:
        """Return the files of the batches that are done."""
        return {name for _, line in self for name in line["files"]}


def _attempt_of(path: Path) -> int:
    return int(path.name.split("-")[1])


def _lines_that_count(path: Path) -> Iterator[tuple[int, Line]]:
    lines = _whole_lines(path)
    for offset, line in lines:
        if line == _HEAD:
            yield from islice(lines, _covered_by(_state_of(path)))
            return
        yield offset, line


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
