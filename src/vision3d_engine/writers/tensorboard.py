"""TensorBoard events, by torch's own `FileWriter`, which other programs patch to see what is written.

TensorBoard is slow to load, so it is imported where the first event is made: in the thread that writes.
"""

import contextlib
import errno
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vision3d_engine.core.files import absolute_path
from vision3d_engine.writers.pictures import as_images, drawn
from vision3d_engine.writers.protocol import MetricWriter

# At the end of the names of our files: others in the folder are left alone.
_SUFFIX = ".engine"
_MAX_POINTS = 20_000
_MAX_LINES = 500
_POINT_SIZE = 0.014  # of the diagonal of what is drawn; without a size TensorBoard draws points 1 to 2 pixels wide
# Of clouds whose diagonal is 1; TensorBoard's own camera lies by the origin, and cuts off what is nearer than 0.1.
_CAMERA = {"fov": 45, "near": 0.01, "position": [0.45, 0.55, 1.1], "lookAt": [0, 0, 0]}
_MESH_CONFIG = {"camera": _CAMERA, "material": {"cls": "PointsMaterial", "size": _POINT_SIZE}}
_SPARE_BYTES = 1 << 14
_BATCHES = "total_steps"


class TensorBoardWriter(MetricWriter):
    """Writes events into a file of its own in an event folder, both made with the first event."""

    def __init__(self, event_dir: str | Path) -> None:
        self.path = absolute_path(event_dir)
        self._writer: Any = None
        self._file: Path | None = None
        self._whole = 0
        self._purge_step: int | None = None  # TensorBoard shall forget what earlier files hold from here on
        self._events: list[tuple[Any, int, float]] = []

    @property
    def is_open(self) -> bool:
        """Whether this object has written since it was made or closed."""
        return self._writer is not None

    def scalars(
        self, phase: str, values: Mapping[str, float], step: int, position: Mapping[str, Any], time: float
    ) -> None:
        """Write numbers, and learning rates of the position, as ``phase/key``, all in one event.

        An event each would cost eight times as much. Where the axis of the training is another than batches, their
        number is written too (``train/total_steps``), by which `cut_back` finds the place of a checkpoint.
        """
        from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

        rates = {key: value for key, value in position.items() if key.partition("/")[0] == "lr"}
        if phase == "train" and position.get(_BATCHES, step) != step:
            rates[_BATCHES] = position[_BATCHES]
        tags = {f"{phase}/{key}": value for key, value in {**rates, **values}.items()}
        packed = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in tags.items()])
        self._events.append((packed, step, time))

    def points(self, tag: str, points: Sequence[Any], colors: Sequence[Any] | None, step: int) -> None:
        """Write clouds for the mesh tab; at most 20,000 points of each are kept, evenly many left out."""
        clouds = [_thinned(cloud, _MAX_POINTS) for cloud in points]
        painted = None if colors is None else [_thinned(color, _MAX_POINTS) for color in colors]
        self._add_mesh(tag, clouds, painted, step)

    def lines(self, tag: str, points: Any, colors: Any, edges: Any, edge_colors: Any, step: int) -> None:
        """Write points and lines for the mesh tab, which has no lines: a row of points stands for each.

        At most 20,000 points and 500 lines are kept.
        """
        spacing = _diagonal(points) * _POINT_SIZE / 2
        dots, painted = _dotted(points, _thinned(edges, _MAX_LINES), _thinned(edge_colors, _MAX_LINES), spacing)
        cloud = np.concatenate([_thinned(points, _MAX_POINTS), dots])
        self._add_mesh(tag, [cloud], [np.concatenate([_thinned(colors, _MAX_POINTS), painted])], step)

    def _add_mesh(self, tag: str, clouds: list[np.ndarray], colors: list[np.ndarray] | None, step: int) -> None:
        points = torch.from_numpy(_stacked([_as_seen(cloud) for cloud in clouds]))
        painted = None if colors is None else torch.from_numpy(_stacked(colors))
        self._add("mesh", step, tag, points, painted, None, _MESH_CONFIG)

    def images(self, tag: str, images: Any, step: int, dataformats: str) -> None:
        """Write images, several side by side and without their transparency."""
        found = as_images(images, dataformats)
        one, layout = (found[0], "HWC") if len(found) == 1 else (found[..., :3], "NHWC")
        self._add("image", step, tag, one, dataformats=layout)

    def figures(self, tag: str, figure: Any, step: int) -> None:
        """Write a figure as an image."""
        self._add("image", step, tag, drawn(figure), dataformats="HWC")

    def histograms(self, tag: str, values: Any, step: int) -> None:
        """Write a histogram of 64 equal bins."""
        self._add("histogram", step, tag, values, bins=64)

    def text(self, tag: str, text: str, step: int) -> None:
        """Write a text, under its own tag: torch adds a word to it."""
        self._add("text", step, tag, text)
        self._events[-1][0].value[0].tag = tag

    def _add(self, kind: str, step: int, *args: Any, **options: Any) -> None:
        from torch.utils.tensorboard import summary

        self._events.append((getattr(summary, kind)(*args, **options), step, time.time()))

    def flush(self) -> None:
        """Write the events.

        Raises:
            OSError: when the disk is full; then none of them is there.
        """
        events, self._events = self._events, []
        if not events:
            return
        self._require_space(sum(packed.ByteSize() + 64 for packed, _, _ in events))
        writer = self._open()
        try:
            for packed, step, when in events:
                writer.add_summary(packed, step, when)
            writer.flush()
            self._whole = _size(self._file)
        except Exception:
            self._abandon()
            raise

    def _require_space(self, needed: int) -> None:
        """Refuse what would not fit: the writer's own thread would die of it, with half an event in the file."""
        self.path.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(self.path).free < needed + _SPARE_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _open(self) -> Any:
        if self._writer is None:
            from torch.utils.tensorboard.writer import FileWriter

            before = set(self._files())
            self._writer = FileWriter(str(self.path), max_queue=1000, filename_suffix=_SUFFIX)
            self._file = next((path for path in self._files() if path not in before), None)
            if self._purge_step is not None:
                from tensorboard.compat.proto import event_pb2

                proto: Any = event_pb2
                start = proto.SessionLog(status=proto.SessionLog.START)
                self._writer.add_event(proto.Event(step=self._purge_step, session_log=start))
                self._purge_step = None
        return self._writer

    def _abandon(self) -> None:
        """Leave a file whose writer has failed as it was before; later events get a new one."""
        with contextlib.suppress(Exception):
            self._writer.close()
        self._writer = None
        if _size(self._file) > self._whole:
            os.truncate(str(self._file), self._whole)
        self._whole = 0

    def _files(self) -> list[Path]:
        return sorted(self.path.glob(f"*tfevents*{_SUFFIX}"))

    def position(self) -> dict[str, int]:
        """Return the bytes of each file of the run."""
        return {path.name: _size(path) for path in self._files()}

    def cut_back(self, position: Mapping[str, int] | None, step: int) -> None:
        """Cut the files, and remove later ones, so that each curve is as it was, whatever its axis.

        A checkpoint of weights alone, of an older engine, or of a run in another folder, knows none of them: then they
        are cut before the first training row of a later step, and TensorBoard is told to forget what lies there.
        """
        self.close()
        files = self._files()
        if position is None or (position and not any(path.name in position for path in files)):
            position, self._purge_step = _cut_at(files, step)
        for path in files:
            if path.name not in position:
                path.unlink()
            elif _size(path) > position[path.name]:
                os.truncate(path, position[path.name])

    def close(self) -> None:
        """Close the event file."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()


def _cut_at(files: list[Path], batches: int) -> tuple[dict[str, int], int]:
    """Return the bytes of each file before the first training row with more batches, and from which step on to forget.

    Of later files nothing is left.
    """
    ends: dict[str, int] = {}
    for path in files:
        ends[path.name], forget_from = _end_of(path, batches)
        if ends[path.name] < _size(path):
            return ends, forget_from
    return ends, batches + 1


def _end_of(path: Path, batches: int) -> tuple[int, int]:
    """Return the bytes of the whole records before the first training row with more batches, and that row's step.

    If the training row before it has the same step, the one after that.

    A record is eight bytes of length, a checksum of four, the event, and its checksum of four.
    """
    from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]

    end, begin = 0, 0
    with path.open("rb") as file:
        while head := file.read(12):
            packed = file.read(int.from_bytes(head[:8], "little"))
            if len(file.read(4)) < 4:  # noqa: PLR2004  the writer was killed within a record
                break
            event = Event.FromString(packed)
            if (trained := _batches_of(event)) > batches:
                return end, max(event.step, begin)
            begin = event.step + 1 if trained else begin
            end = file.tell()
    return end, batches + 1


def _batches_of(event: Any) -> int:
    """Return how many batches were trained at a row of the training; 0 for any other event."""
    numbers = {value.tag: value.simple_value for value in event.summary.value if value.tag.startswith("train/")}
    return int(numbers.get(f"train/{_BATCHES}", event.step)) if numbers else 0


def _size(path: Path | None) -> int:
    return path.stat().st_size if path is not None and path.exists() else 0


# ------------------------------------------------------------------------------------------- the mesh tab


def _thinned(rows: np.ndarray, most: int) -> np.ndarray:
    """Return at most so many rows, evenly taken."""
    return rows[:: max(1, -(-len(rows) // most))]


def _stacked(clouds: Sequence[np.ndarray]) -> np.ndarray:
    """Return clouds as one array ``(B, N, 3)``: the last point of shorter ones is repeated, which nobody sees.

    One without points becomes zeros, since the mesh tab takes no empty one.
    """
    clouds = [cloud if len(cloud) else np.zeros((1, 3), cloud.dtype) for cloud in clouds]
    longest = max(map(len, clouds))
    return np.stack([cloud[np.minimum(np.arange(longest), len(cloud) - 1)] for cloud in clouds])


def _as_seen(points: np.ndarray) -> np.ndarray:
    """Return a cloud in float32 as the tab shows it: around the origin, with a diagonal of 1, z upwards on the screen.

    The tab has y upwards, looks at each cloud from near the origin, and has one configuration for all clouds of a tag.
    """
    points = np.asarray(points)
    if not len(points):
        return points.astype(np.float32)
    low, high = points.min(axis=0), points.max(axis=0)
    x, y, z = ((points - (low + high) / 2) / (_diagonal(points) or 1)).T
    return np.stack([x, z, -y], axis=1).astype(np.float32)


def _diagonal(points: np.ndarray) -> float:
    """Return the diagonal of the box around points; 0 without any."""
    return float(np.linalg.norm(np.ptp(points, axis=0))) if len(points) else 0.0


def _dotted(points: np.ndarray, edges: np.ndarray, colors: np.ndarray, spacing: float) -> tuple[np.ndarray, np.ndarray]:
    """Return points along lines, at most so far apart, and their colours."""
    begins, ways = points[edges[:, 0]], points[edges[:, 1]] - points[edges[:, 0]]
    counts = np.ceil(np.linalg.norm(ways, axis=1) / (spacing or 1)).astype(np.int64) + 1
    line = np.repeat(np.arange(len(edges)), counts)
    number = np.arange(len(line)) - np.repeat(np.cumsum(counts) - counts, counts)
    share = number / np.maximum(counts[line] - 1, 1)
    return begins[line] + share[:, np.newaxis] * ways[line], colors[line]
