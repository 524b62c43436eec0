"""What a run shows, in files that other programs open: clouds and lines in PLY, images in PNG, texts in TXT."""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np

from vision3d_engine.core.files import GrowingFile, absolute_path, atomic_write
from vision3d_engine.writers.pictures import as_images, drawn
from vision3d_engine.writers.protocol import MetricWriter

# Lists what was written, in order, a JSON object a line. No tag has this name, since it begins with a dot.
_INDEX = ".index.jsonl"
_LONGEST_NAME = 80
_BINS = 64
_WRITES = Callable[[IO[bytes]], object]


class FilesWriter(MetricWriter):
    """Writes ``TAG/step-000123.ply`` and the like into a folder, which is made with the first file.

    A file is there whole or not at all, and what is written of the same tag and step replaces all that was. Of several
    clouds or images each has a file, ``step-000123-0.ply``. A tag's slashes make folders; what not every file system
    allows is replaced in it.

    Args:
        folder: where the files lie.
        enabled: False for a writer that writes nothing, but still forgets what was written after a checkpoint.
    """

    def __init__(self, folder: str | Path, enabled: bool = True) -> None:
        self.path = absolute_path(folder)
        self._enabled = enabled
        self._index = GrowingFile(self.path / _INDEX)

    @property
    def is_open(self) -> bool:
        """Whether this object has written since it was made or closed."""
        return self._index.is_open

    def points(self, tag: str, points: Sequence[Any], colors: Sequence[Any] | None, step: int) -> None:
        """Write each cloud as PLY, all of its points."""
        painted = [None] * len(points) if colors is None else colors
        clouds = zip(points, painted, strict=True)
        self._write_all(tag, step, ".ply", [_ply(_vertices(cloud, color)) for cloud, color in clouds])

    def lines(self, tag: str, points: Any, colors: Any, edges: Any, edge_colors: Any, step: int) -> None:
        """Write points and lines as one PLY, the lines as its edges."""
        self._write_all(tag, step, ".ply", [_ply(_vertices(points, colors), _edges(edges, edge_colors))])

    def images(self, tag: str, images: Any, step: int, dataformats: str) -> None:
        """Write each image as PNG."""
        self._write_all(tag, step, ".png", [_png(image) for image in as_images(images, dataformats)])

    def figures(self, tag: str, figure: Any, step: int) -> None:
        """Write a figure as PNG."""
        if self._enabled:
            self._write_all(tag, step, ".png", [_png(drawn(figure))])

    def histograms(self, tag: str, values: Any, step: int) -> None:
        """Write the lines ``from to count`` of 64 equal bins."""
        counts, ends = np.histogram(np.asarray(values), bins=_BINS)
        rows = np.column_stack([ends[:-1], ends[1:], counts])
        self._write_all(tag, step, ".txt", [lambda file: np.savetxt(file, rows, "%.9g", header="from to count")])

    def text(self, tag: str, text: str, step: int) -> None:
        """Write a text."""
        self._write_all(tag, step, ".txt", [lambda file: file.write(text.encode())])

    def _write_all(self, tag: str, step: int, suffix: str, writes: Sequence[_WRITES]) -> None:
        """Write files, each listed before it is there, so that none is overlooked when a run goes back."""
        if not self._enabled:
            return
        folder, name = folder_of(tag), f"step-{step:06d}"
        (self.path / folder).mkdir(parents=True, exist_ok=True)
        files = [name + (f"-{number}" if len(writes) > 1 else "") + suffix for number in range(len(writes))]
        for file, write in zip(files, writes, strict=True):
            entry = {"file": str(folder / file), "tag": tag, "step": step}
            self._index.add((json.dumps(entry) + "\n").encode())
            with atomic_write(self.path / folder / file) as stream:
                write(stream)
        for former in _numbered(self.path / folder, name, suffix):
            if former.name not in files:
                former.unlink()

    def position(self) -> int:
        """Return the bytes of the list of files."""
        return self._index.path.stat().st_size if self._index.path.exists() else 0

    def cut_back(self, position: int | None, step: int) -> None:
        """Remove the files that were listed later; without a position, as in checkpoints of older engines, none.

        One that had replaced an earlier file goes as well: a run that goes on from there writes it again.
        """
        if position is None or self.position() <= position:
            return
        with self._index.path.open("rb") as index:
            index.seek(position)
            for line in index:
                with contextlib.suppress(ValueError):  # a line that a killed process has left
                    self._remove(self.path / json.loads(line)["file"])
        os.truncate(self._index.path, position)

    def _remove(self, file: Path) -> None:
        for half_written in file.parent.glob(f".{file.name}.*.tmp"):
            half_written.unlink()
        file.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the list of files."""
        self._index.close()


def _numbered(folder: Path, name: str, suffix: str) -> list[Path]:
    """Return the files of a step in the folder of a tag, with and without numbers."""
    pattern = re.compile(rf"{re.escape(name)}(-\d+)?{re.escape(suffix)}")
    return [path for path in folder.glob(f"{name}*{suffix}") if pattern.fullmatch(path.name)]


def listed_files(folder: Path) -> Iterator[tuple[str, int, Path]]:
    """Yield tag, step and path of all that a `FilesWriter` has written there, in order; a file may be gone since."""
    with contextlib.suppress(FileNotFoundError), (folder / _INDEX).open("rb") as index:
        for line in index:
            with contextlib.suppress(ValueError):  # a line that a killed process has left
                entry = json.loads(line)
                yield entry["tag"], entry["step"], folder / entry["file"]


def folder_of(tag: str) -> PurePosixPath:
    """Return the relative folder of a tag: itself, or a safe name with a digest, so that no two tags share one."""
    parts = [re.sub(r"[^\w.+=-]+", "_", part).strip(".")[:_LONGEST_NAME] for part in tag.split("/")]
    folder = PurePosixPath(*(part or "_" for part in parts))
    if str(folder) != tag:
        digest = hashlib.sha256(tag.encode()).hexdigest()[:8]
        folder = folder.with_name(f"{folder.name}-{digest}")
    return folder


def _vertices(points: Any, colors: Any) -> tuple[str, np.ndarray]:
    """Return the vertices of a PLY: coordinates in float32, or float64 if they came in it, and 8-bit colours."""
    points = np.asarray(points)
    kind = "<f8" if points.dtype == np.float64 else "<f4"
    columns = [(name, kind, points[:, axis]) for axis, name in enumerate("xyz")]
    return "vertex", _table(columns + _color_columns(colors), len(points))


def _edges(edges: Any, colors: Any) -> tuple[str, np.ndarray]:
    columns = [(f"vertex{side + 1}", "<i4", np.asarray(edges)[:, side]) for side in range(2)]
    return "edge", _table(columns + _color_columns(colors), len(edges))


def _color_columns(colors: Any) -> list[tuple[str, str, np.ndarray]]:
    names = () if colors is None else ("red", "green", "blue")
    return [(name, "u1", np.asarray(colors)[:, channel]) for channel, name in enumerate(names)]


def _table(columns: list[tuple[str, str, np.ndarray]], size: int) -> np.ndarray:
    table = np.empty(size, dtype=[(name, kind) for name, kind, _ in columns])
    for name, _, values in columns:
        table[name] = values
    return table


def _ply(*elements: tuple[str, np.ndarray]) -> _WRITES:
    def write(file: IO[bytes]) -> None:
        from plyfile import PlyData, PlyElement

        PlyData([PlyElement.describe(table, name) for name, table in elements], byte_order="<").write(file)

    return write


def _png(image: np.ndarray) -> _WRITES:
    def write(file: IO[bytes]) -> None:
        from PIL import Image

        is_grey = image.shape[-1] == 1
        Image.fromarray(image[..., 0] if is_grey else image).save(file, format="PNG")

    return write
