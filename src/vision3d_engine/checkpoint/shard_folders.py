"""The folders beside checkpoint files that hold tensors spread over processes: their names, contents and removal.

A file ``epoch-3.pth`` of a sharded run holds everything but these tensors, and under ``shards`` the name of its folder
(``epoch-3@120.dcp``), which is written first. So the file is the mark that all of it is there.
"""

import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from vision3d_engine.core.errors import CheckpointError
from vision3d_engine.distributed.parallel.shards import descriptions, put_in

_FOLDER = re.compile(r"(?P<stem>.+)@\d+(\.\d+)?\.dcp")


def is_shard_folder(name: str) -> bool:
    """Tell whether a name is one that `free_folder` gives."""
    return _FOLDER.fullmatch(name) is not None


def free_folder(folder: Path, filename: str, total_steps: int) -> str:
    """Return the name of a new folder for a file's tensors; one that a file may still point to is never reused."""
    stem = f"{filename.removesuffix('.pth')}@{total_steps}"
    names = [f"{stem}.dcp", *(f"{stem}.{number}.dcp" for number in range(2, 1000))]
    return next(name for name in names if not (folder / name).exists())


def folders_of(folder: Path, filename: str) -> list[Path]:
    """Return the folders that were made for a file."""
    stem = filename.removesuffix(".pth")
    found = [(path, _FOLDER.fullmatch(path.name)) for path in folder.glob("*.dcp")]
    return [path for path, match in found if match and match["stem"] == stem]


def remove_unused(folder: Path, filename: str, pointing: Iterable[str]) -> None:
    """Remove the folders of a file to which none of the files that are named in ``pointing`` points.

    All stay when one of these is unreadable, or none of them points anywhere.
    """
    if not (found := folders_of(folder, filename)):
        return
    try:
        used = {pointer_of(folder / file) for file in pointing} - {None}
    except Exception:  # noqa: BLE001  whatever torch makes of bytes that it did not write
        return
    for path in found if used else ():
        if path.name not in used:
            shutil.rmtree(path, ignore_errors=True)


def remove_unfinished(folder: Path) -> None:
    """Remove folders whose writing was cut short."""
    for path in folder.glob("*.dcp"):
        if is_shard_folder(path.name) and not (path / ".metadata").exists():
            shutil.rmtree(path, ignore_errors=True)


def pointer_of(path: Path) -> str | None:
    """Return the name of the folder that a checkpoint points to; None when it has none, or there is no file."""
    if not path.exists():
        return None
    state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return state.get("shards", {}).get("folder")


def is_sharded_state(state: Mapping[str, Any]) -> bool:
    """Return whether a file's state points to a folder that holds its tensors."""
    return isinstance(state.get("shards"), Mapping) and {"folder", "checksums"} <= state["shards"].keys()


def with_tensors(state: Mapping[str, Any], path: Path, store: Any, only: Iterable[str] = ()) -> dict[str, Any]:
    """Return the state of a file with the tensors of its folder; see `read_checkpoint` for ``store`` and ``only``.

    Raises:
        CheckpointError: when the folder's name leads elsewhere.
        DamagedCheckpointError: when the folder is missing or damaged.
    """
    shards, rest = state["shards"], {key: value for key, value in state.items() if key != "shards"}
    chosen = {key: rest[key] for key in only or rest if key in rest}
    if not is_shard_folder(str(shards["folder"])) or "/" in shards["folder"]:
        message = f"'{path}' points to '{shards['folder']}', no folder of shards beside it; use another one"
        raise CheckpointError(message)
    folder, wanted = path.parent / shards["folder"], descriptions(chosen)
    if store is None:
        from vision3d_engine.distributed.parallel.shard_store import read_whole

        tensors = read_whole(folder, wanted, shards["checksums"])
    else:
        tensors = store.read(folder, wanted, shards["dims"], shards["checksums"])
    return rest | put_in(chosen, tensors)
