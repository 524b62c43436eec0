"""TensorBoard events; the only place that knows TensorBoard. Imported on the first event, since it is slow to load."""

import io
import itertools
import os
import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]  made by protobuf
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.summary import mesh

from vision3d_engine.core.files import GrowingFile

# Without a material TensorBoard draws points 1 to 2 pixels wide.
_POINT_MATERIAL = {"material": {"cls": "PointsMaterial", "size": 0.03}}
_MAX_POINTS = 20_000
_NUMBERS = itertools.count()


class TensorBoardWriter:
    """Writes scalars and point clouds into a file of its own in an event folder.

    Events are written where they are made, by the thread that asks: ``SummaryWriter`` would hand each to one more
    thread, and the interpreter changes threads at the expense of the training step.

    Args:
        event_dir: the folder; made when missing.
        purge_step: what earlier files hold from this step on, TensorBoard forgets.
    """

    def __init__(self, event_dir: str | Path, purge_step: int | None = None) -> None:
        folder = Path(event_dir)
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{int(time.time()):010d}.{platform.node()}.{os.getpid()}.{next(_NUMBERS)}"
        head = [Event(wall_time=time.time(), file_version="brain.Event:2")]
        if purge_step is not None:
            start = SessionLog(status=SessionLog.START)
            head.append(Event(wall_time=time.time(), step=purge_step, session_log=start))
        self._head: Sequence[Event] = head
        self._file = GrowingFile(folder / name)

    def scalars(self, events: Iterable[tuple[float, str, Mapping[str, float], int]]) -> None:
        """Write sets of numbers (time, phase, values, step) as ``phase/key``, each set in one event.

        Raises:
            OSError: when the disk is full; then none of them is there.
        """
        packed_events = []
        for when, phase, values, step in events:
            tags = {f"{phase}/{key}" if phase else key: value for key, value in values.items()}
            packed = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in tags.items()])
            packed_events.append(Event(wall_time=when, step=step, summary=packed))
        self._write(packed_events)

    def points(self, tag: str, points: Any, colors: Any, step: int) -> None:
        """Write clouds ``(B, N, 3)`` with colours ``(B, N, 3)``, 0 to 255; at most 20,000 points of each are kept."""
        points = torch.as_tensor(points).detach().cpu()
        colors = None if colors is None else torch.as_tensor(colors).detach().cpu()
        stride = -(-points.shape[1] // _MAX_POINTS)
        colors = None if colors is None else colors[:, ::stride]
        packed = mesh(tag, points[:, ::stride], colors, None, _POINT_MATERIAL)
        self._write([Event(wall_time=time.time(), step=step, summary=packed)])

    def _write(self, events: Sequence[Event]) -> None:
        """Write events whole or not at all, since a reader stops at half a record; the first ones begin the file."""
        packed = io.BytesIO()
        records = RecordWriter(packed)
        for event in (*self._head, *events):
            records.write(event.SerializeToString())
        self._file.add(packed.getvalue())
        self._head = ()

    def close(self) -> None:
        """Close the event file."""
        self._file.close()
