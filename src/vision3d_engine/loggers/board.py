"""The numbers of a run: each set of values leaves once, to every writer."""

import time
from collections.abc import Mapping
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
        """Put the JSON lines of an earlier run in the same folder aside, under the time of their last line."""
        path = Path(self._jsonl_file)
        if self._enabled and self._jsonl is None and path.exists():
            stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(path.stat().st_mtime))
            path.rename(path.with_name(f"{path.stem}-{stamp}{path.suffix}"))

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

            self._tensorboard = TensorBoardWriter(self._event_dir)
        return self._tensorboard
