"""Numbers as JSON lines: one object a line, readable by ``grep``, pandas and other programs."""

import contextlib
import io
import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vision3d_engine.core.files import GrowingFile, absolute_path
from vision3d_engine.writers.protocol import MetricWriter


class LinesWriter(MetricWriter):
    """Appends lines to a file, which is made with the first one; what is held back is written whole or not at all."""

    def __init__(self, path: str | Path) -> None:
        self.path = absolute_path(path)
        self._file = GrowingFile(path)
        self._lines: list[str] = []

    @property
    def is_open(self) -> bool:
        """Whether this object has written since it was made or closed."""
        return self._file.is_open

    def flush(self) -> None:
        """Write the lines.

        Raises:
            OSError: when the disk is full; then none of them is there.
        """
        lines, self._lines = self._lines, []
        if lines:
            self._file.add("".join(lines).encode())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class JsonLinesWriter(LinesWriter):
    """Appends rows as JSON objects."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self._started = time.time()

    def scalars(
        self, phase: str, values: Mapping[str, float], step: int, position: Mapping[str, Any], time: float
    ) -> None:
        """Append an object with the step in it."""
        self.row(phase, values, {"step": step, **position}, time)

    def row(self, phase: str, values: Mapping[str, float], position: Mapping[str, Any], time: float) -> None:
        """Append an object; nan and infinity, which JSON does not have, become null."""
        time_s = round(time - self._started, 3)
        self._lines.append(_as_line({"phase": phase, **position, "time_s": time_s, "values": values}))

    def position(self) -> int:
        """Return the bytes of the file."""
        return self.path.stat().st_size if self.path.exists() else 0

    def cut_back(self, position: int | None, step: int) -> None:
        """Cut the file; without a position, before the engine's first row that is later than the step."""
        position = self._end_of(step) if position is None else position
        if self.position() > position:
            os.truncate(self.path, position)

    def _end_of(self, step: int) -> int:
        """Return the bytes of the rows until a number of training batches."""
        end = 0
        with self.path.open("rb") if self.path.exists() else io.BytesIO() as file:
            for line in file:
                if _batches(line) > step:
                    break
                end += len(line)
        return end


def _batches(line: bytes) -> int:
    """Return how many batches were trained at a row of the engine, which has an epoch; 0 for any other line."""
    with contextlib.suppress(ValueError, TypeError, KeyError):
        row = json.loads(line)
        return int(row.get("total_steps", row["step"])) if "epoch" in row else 0
    return 0


def _as_line(row: Mapping[str, Any]) -> str:
    """Return a row as a line; what JSON does not know is written as text, so that no row takes others with it."""
    try:
        return json.dumps(row, allow_nan=False, default=str) + "\n"
    except ValueError:
        return json.dumps(_finite(row), default=str) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
