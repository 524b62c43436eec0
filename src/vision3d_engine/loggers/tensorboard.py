"""TensorBoard events; the only place that knows TensorBoard. Imported on the first event, since it is slow to load."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]  made by protobuf
from torch.utils.tensorboard import SummaryWriter

# Without a material TensorBoard draws points 1 to 2 pixels wide.
_POINT_MATERIAL = {"material": {"cls": "PointsMaterial", "size": 0.03}}
_MAX_POINTS = 20_000


class TensorBoardWriter:
    """Writes scalars and point clouds into one event folder.

    Args:
        event_dir: the folder; every writer begins a file of its own.
        purge_step: what earlier files hold from this step on, TensorBoard forgets.
    """

    def __init__(self, event_dir: str | Path, purge_step: int | None = None) -> None:
        self._writer: Any = SummaryWriter(log_dir=str(event_dir), purge_step=purge_step)

    def scalars(self, phase: str, values: Mapping[str, float], step: int) -> None:
        """Write numbers as ``phase/key``, all in one event."""
        tags = {f"{phase}/{key}" if phase else key: float(value) for key, value in values.items()}
        packed = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in tags.items()])
        self._writer.file_writer.add_summary(packed, step)

    def points(self, tag: str, points: Any, colors: Any, step: int) -> None:
        """Write clouds ``(B, N, 3)`` with colours ``(B, N, 3)``, 0 to 255; at most 20,000 points of each are kept."""
        points = torch.as_tensor(points).detach().cpu()
        colors = None if colors is None else torch.as_tensor(colors).detach().cpu()
        stride = -(-points.shape[1] // _MAX_POINTS)
        colors = None if colors is None else colors[:, ::stride]
        self._writer.add_mesh(tag, points[:, ::stride], colors=colors, config_dict=_POINT_MATERIAL, global_step=step)

    def flush(self) -> None:
        """Hand everything to the operating system."""
        self._writer.flush()

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()
