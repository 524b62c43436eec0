"""What single training steps have returned, to the bit: what a replay of a step is compared with."""

import json
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from vision3d_engine.core.files import atomic_write
from vision3d_engine.writers.jsonl import LinesWriter

# The newest bytes that stay when the file has grown to twice as many.
_KEPT_BYTES = 32 * 2**20


class StepValuesWriter(LinesWriter):
    """Appends the values of each log interval as a JSON line, with their bits as text; the oldest go in time.

    Args:
        path: the file, made with the first line.
        kept_bytes: how much stays when it has grown to twice as much.
        processes: how many the run has now, which decides of how many batches a step is one.
    """

    def __init__(self, path: str | Path, kept_bytes: int = _KEPT_BYTES, processes: int = 1) -> None:
        super().__init__(path)
        self._kept_bytes, self._processes = kept_bytes, processes

    def step_values(
        self, epoch: int, before: int, iterations: Sequence[int], keys: Sequence[str], values: Sequence[float]
    ) -> None:
        """Append them; see `MetricWriter.step_values`."""
        position = {"epoch": epoch, "before": before, "iterations": list(iterations), "processes": self._processes}
        bits = struct.pack(f"<{len(values)}d", *values).hex()
        self._lines.append(json.dumps({**position, "keys": list(keys), "bits": bits}) + "\n")

    def flush(self) -> None:
        """Write the lines, and forget the oldest ones when these have become too many.

        Raises:
            OSError: when the disk is full; then none of them is there.
        """
        has_more = bool(self._lines)
        super().flush()
        if has_more and self.path.stat().st_size > 2 * self._kept_bytes:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        self._file.close()
        kept = self.path.read_bytes()[-self._kept_bytes :]
        with atomic_write(self.path) as file:
            file.write(kept[kept.find(b"\n") + 1 :])

    def cut_back(self, position: None, step: int) -> None:
        """Cut the file before the first line that holds a later step; bytes do not count, since the oldest lines go."""
        end = 0
        for line in _lines_of(self.path):
            if (known := _read(line)) and max(known.steps, default=0) > step:
                os.truncate(self.path, end)
                return
            end += len(line)


def recorded_steps(path: Path) -> dict[int, dict[str, float]]:
    """Return by total steps what each step has returned; of one that was made twice the later values."""
    found: dict[int, dict[str, float]] = {}
    for line in step_lines(path):
        for step, values in line.steps.items():
            found[step] = found.get(step, {}) | values
    return found


class StepLine(NamedTuple):
    """What a line holds of a log interval.

    Attributes:
        epoch: the epoch of its steps.
        before: steps of the run before this epoch: a step is the epoch's iteration ``step - before``.
        processes: how many the run had; 0 where the line does not tell.
        steps: by total steps what each step has returned.
    """

    epoch: int
    before: int
    processes: int
    steps: dict[int, dict[str, float]]


def step_lines(path: Path) -> Iterator[StepLine]:
    """Yield the lines of the file but for torn ones; nothing where there is no file."""
    return filter(None, map(_read, _lines_of(path)))


def _lines_of(path: Path) -> Iterator[bytes]:
    with suppress(FileNotFoundError), path.open("rb") as file:
        yield from file


def _read(line: bytes) -> StepLine | None:
    """Return what a line holds; None for a torn one."""
    with suppress(ValueError, KeyError, TypeError, struct.error):
        row = json.loads(line)
        keys, iterations = row["keys"], row["iterations"]
        numbers = struct.unpack(f"<{len(keys) * len(iterations)}d", bytes.fromhex(row["bits"]))
        of_steps = zip(*[iter(numbers)] * len(keys), strict=True)
        steps = (row["before"] + iteration for iteration in iterations)
        values = {step: dict(zip(keys, each, strict=True)) for step, each in zip(steps, of_steps, strict=True)}
        return StepLine(row["epoch"], row["before"], row.get("processes", 0), values)
    return None
