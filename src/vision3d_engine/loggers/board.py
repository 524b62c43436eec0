"""The numbers of a run: each set of values leaves once, to every writer."""

import os
import time
from collections.abc import Mapping
from itertools import chain, count
from pathlib import Path
from typing import Any

from vision3d_engine.loggers.jsonl import JsonLinesWriter


class EventBoard:
    """Writes sets of named numbers to TensorBoard (``phase/key``) and to ``metrics.jsonl``.

    The files are opened by the first write, so a run that writes nothing leaves nothing.

    Args:
        event_dir: folder of the TensorBoard events.
        jsonl_file: file of the JSON lines.
        enabled: False on all processes but the main one, where every call returns at once.
    """

    def __init__(self, event_dir: str | Path, jsonl_file: str | Path, enabled: bool = True) -> None:
        self._event_dir = event_dir
        self._jsonl_file = jsonl_file
        self._enabled = enabled
        self._started = time.time()
        self._tensorboard: Any = None
        self._jsonl: JsonLinesWriter | None = None
        self._purge_step: int | None = None

    def write(self, phase: str, values: Mapping[str, float], step: int, **position: Any) -> None:
        """Write numbers of one phase at one step; ``position`` (epoch, iteration, ...) goes into the JSON line."""
        if self._enabled:
            self._open_tensorboard().scalars(phase, values, step)
            self.write_row(phase, values, step=step, **position)

    def write_row(self, phase: str, values: Mapping[str, float], **position: Any) -> None:
        """Write numbers as a JSON line only."""
        if not self._enabled:
            return
        if self._jsonl is None:
            self._jsonl = JsonLinesWriter(self._jsonl_file)
        time_s = round(time.time() - self._started, 3)
        self._jsonl.row({"phase": phase, **position, "time_s": time_s, "values": dict(values)})

    def write_points(self, tag: str, points: Any, colors: Any, step: int) -> None:
        """Write point clouds for TensorBoard's mesh tab."""
        if self._enabled:
            self._open_tensorboard().points(tag, points, colors, step)

    def start_anew(self) -> None:
        """Put the numbers of an earlier run in the same folder aside, under the time of their last change."""
        for path, writer in ((Path(self._jsonl_file), self._jsonl), (Path(self._event_dir), self._tensorboard)):
            if self._enabled and writer is None and path.exists():
                stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(path.stat().st_mtime))
                path.rename(_free_name(path, stamp))

    def ends(self) -> dict[str, int]:
        """Return how far the files reach, for `go_on_from`."""
        if not self._enabled or self._jsonl is None:
            return {"metrics_bytes": _size(Path(self._jsonl_file))}
        return {"metrics_bytes": self._jsonl.end()}

    def go_on_from(self, ends: Mapping[str, int], step: int) -> None:
        """Forget what was written after a checkpoint, since a resumed run writes it again: no curve goes back.

        Args:
            ends: what `ends` returned when the checkpoint was saved.
            step: training batches until then.
        """
        if not self._enabled:
            return
        self._purge_step = step + 1
        path, end = Path(self._jsonl_file), ends.get("metrics_bytes")
        if end is not None and _size(path) > end:
            os.truncate(path, end)

    def flush(self) -> None:
        """Hand everything written so far to the operating system."""
        if self._tensorboard is not None:
            self._tensorboard.flush()

    def close(self) -> None:
        """Flush and close all files; a later write opens them again."""
        for writer in (self._tensorboard, self._jsonl):
            if writer is not None:
                writer.close()
        self._tensorboard = self._jsonl = None

    def _open_tensorboard(self) -> Any:
        if self._tensorboard is None:
            from vision3d_engine.loggers.tensorboard import TensorBoardWriter

            self._tensorboard = TensorBoardWriter(self._event_dir, self._purge_step)
            self._purge_step = None
        return self._tensorboard


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _free_name(path: Path, stamp: str) -> Path:
    """Return the path with a time in its name, which no other file has."""
    numbers = chain([""], (f"-{number}" for number in count(1)))
    names = (path.with_name(f"{path.stem}-{stamp}{number}{path.suffix}") for number in numbers)
    return next(name for name in names if not name.exists())
