"""Hands files of samples to the thread that writes them, each under a name of its own."""

from functools import partial
from pathlib import Path
from typing import Any

from vision3d_engine.core.errors import ResultError, did_you_mean, listed
from vision3d_engine.results.folder import ResultsFolder
from vision3d_engine.results.sample_files import FORMATS, safe_name, to_arrays, to_columns
from vision3d_engine.results.writer import OrderedWriter, as_folder_error


class SampleFiles:
    """The files of single samples.

    Args:
        folder: where they lie.
        writer: writes them.
    """

    def __init__(self, folder: ResultsFolder, writer: OrderedWriter) -> None:
        self._folder, self._writer = folder, writer
        self._kinds: dict[str, Path] = {}

    def save(self, kind: str, sample: str, values: Any, suffix: str) -> str:
        """Hand a file to the thread that writes, and return its name.

        Raises:
            ResultError: for another format, or values that it cannot hold, and, from the thread, for an earlier file
                whose name another one has, whichever process has written it.
        """
        if suffix not in FORMATS:
            message = f"save_result(..., format='{suffix}'){did_you_mean(suffix, FORMATS)}: there are {listed(FORMATS)}"
            raise ResultError(message)
        arrays = to_arrays(values)
        if suffix == "ply":
            arrays = to_columns(arrays)
        path = self._folder_of(safe_name(kind)) / f"{safe_name(sample)}.{suffix}"
        write = partial(_write_new, path, arrays, _CLASH.format(kind, sample, path))
        self._writer.put(write, sum(array.nbytes for array in arrays.values()))
        return f"{path.parent.name}/{path.name}"

    def _folder_of(self, kind: str) -> Path:
        if kind not in self._kinds:
            with as_folder_error(self._folder.path):
                self._kinds[kind] = self._folder.open_kind(kind)
        return self._kinds[kind]


def _write_new(path: Path, arrays: dict[str, Any], clash: str) -> None:
    """Write a file unless it is there, or another process is about to write it.

    Raises:
        ResultError: saying ``clash``.
    """
    claim = path.with_name(f".{path.name}.tmp")
    try:
        claim.touch(exist_ok=False)
    except FileExistsError:
        raise ResultError(clash) from None
    try:
        if path.exists():
            raise ResultError(clash)
        FORMATS[path.suffix[1:]](path, arrays)
    finally:
        claim.unlink()


_CLASH = (
    "save_result('{}') for the sample '{}': '{}' is there already. Two samples have this name, or one is saved twice: "
    "give each sample a name of its own in data_dict['name'], or override sample_name, or save under another kind"
)
