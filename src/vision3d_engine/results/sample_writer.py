"""Hands files of samples to the thread that writes them, each under a name of its own."""

from functools import partial
from pathlib import Path
from typing import Any

from vision3d_engine.core.errors import ResultError, did_you_mean, listed
from vision3d_engine.results.folder import ResultsFolder
from vision3d_engine.results.sample_files import FORMATS, check_cloud, safe_name, to_arrays
from vision3d_engine.results.writer import OrderedWriter


class SampleFiles:
    """The files of single samples.

    Args:
        folder: where they lie.
        writer: writes them.
    """

    def __init__(self, folder: ResultsFolder, writer: OrderedWriter) -> None:
        self._folder, self._writer = folder, writer
        self._kinds: dict[str, Path] = {}
        self._under_way: set[Path] = set()

    def save(self, kind: str, sample: str, values: Any, suffix: str) -> str:
        """Hand a file to the thread that writes, and return its name.

        Raises:
            ResultError: for a name that a file has already, another format, or values that it cannot hold.
        """
        if suffix not in FORMATS:
            message = f"save_result(..., format='{suffix}'){did_you_mean(suffix, FORMATS)}: there are {listed(FORMATS)}"
            raise ResultError(message)
        arrays = to_arrays(values)
        if suffix == "ply":
            check_cloud(arrays)
        path = self._folder_of(safe_name(kind)) / f"{safe_name(sample)}.{suffix}"
        if path in self._under_way or path.exists():
            raise ResultError(_CLASH.format(kind, sample, path))
        self._under_way.add(path)
        self._writer.put(partial(self._write, path, arrays), sum(array.nbytes for array in arrays.values()))
        return f"{path.parent.name}/{path.name}"

    def _folder_of(self, kind: str) -> Path:
        if kind not in self._kinds:
            self._kinds[kind] = self._folder.open_kind(kind)
        return self._kinds[kind]

    def _write(self, path: Path, arrays: dict[str, Any]) -> None:
        FORMATS[path.suffix[1:]](path, arrays)
        self._under_way.discard(path)


_CLASH = (
    "save_result('{}') for the sample '{}': '{}' is there already. Two samples have this name, or one is saved twice: "
    "give each sample a name of its own in data_dict['name'], or override sample_name, or save under another kind"
)
