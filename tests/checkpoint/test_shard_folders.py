"""Folders of shards: their names, what removes them, and what is refused when they are read."""

import os
import pickle
import zlib

import pytest
import torch

from vision3d_engine.checkpoint.files import read_checkpoint, write_checkpoint
from vision3d_engine.checkpoint.shard_folders import (
    folders_of,
    free_folder,
    is_shard_folder,
    pointer_of,
    remove_unfinished,
    remove_unused,
)
from vision3d_engine.core.errors import CheckpointError, DamagedCheckpointError


def make(folder, *names):
    for name in names:
        (folder / name).mkdir()
        (folder / name / ".metadata").write_bytes(b"")


def point(folder, name, to):
    write_checkpoint(folder / name, {"model": {}, "shards": {"folder": to}})


def test_a_folder_that_exists_is_never_written_again(tmp_path):
    assert free_folder(tmp_path, "epoch-3.pth", 12) == "epoch-3@12.dcp"
    make(tmp_path, "epoch-3@12.dcp", "epoch-3@12.2.dcp")
    assert free_folder(tmp_path, "epoch-3.pth", 12) == "epoch-3@12.3.dcp"


def test_names_tell_whose_folder_it_is(tmp_path):
    make(tmp_path, "best_mIoU@0.5@12.dcp", "best_mIoU@7.dcp", "epoch-1@3.2.dcp", "other.dcp")
    assert [path.name for path in folders_of(tmp_path, "best_mIoU@0.5.pth")] == ["best_mIoU@0.5@12.dcp"]
    assert [path.name for path in folders_of(tmp_path, "best_mIoU.pth")] == ["best_mIoU@7.dcp"]
    assert [path.name for path in folders_of(tmp_path, "epoch-1.pth")] == ["epoch-1@3.2.dcp"]
    assert not is_shard_folder("other.dcp")


def test_only_folders_without_a_pointer_go(tmp_path):
    make(tmp_path, "checkpoint@1.dcp", "checkpoint@2.dcp", "checkpoint@3.dcp", "epoch-1@1.dcp")
    point(tmp_path, "checkpoint.prev.pth", "checkpoint@2.dcp")
    point(tmp_path, "checkpoint.pth", "checkpoint@3.dcp")
    remove_unused(tmp_path, "checkpoint.pth", ["checkpoint.pth", "checkpoint.prev.pth"])
    assert sorted(path.name for path in tmp_path.glob("*.dcp")) == [
        "checkpoint@2.dcp",
        "checkpoint@3.dcp",
        "epoch-1@1.dcp",
    ]
    assert pointer_of(tmp_path / "checkpoint.pth") == "checkpoint@3.dcp"


@pytest.mark.parametrize("content", [None, b"damaged"])
def test_no_folder_goes_when_it_is_not_known_what_points_to_it(tmp_path, content):
    make(tmp_path, "checkpoint@1.dcp")
    if content is not None:
        (tmp_path / "checkpoint.pth").write_bytes(content)
    remove_unused(tmp_path, "checkpoint.pth", ["checkpoint.pth"])
    assert (tmp_path / "checkpoint@1.dcp").exists()


def test_folders_that_were_cut_short_go_and_those_of_others_stay(tmp_path):
    make(tmp_path, "epoch-1@1.dcp")
    (tmp_path / "epoch-2@2.dcp").mkdir()
    (tmp_path / "mine.dcp").mkdir()
    remove_unfinished(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch-1@1.dcp", "mine.dcp"]


def sharded(folder, metadata, where="a@1.dcp"):
    """Write a checkpoint that points to a folder with these metadata."""
    (folder / "a@1.dcp").mkdir()
    (folder / "a@1.dcp" / ".metadata").write_bytes(metadata)
    model = {"weight": torch.empty(2, device="meta")}
    shards = {"folder": where, "checksums": {".metadata": zlib.crc32(metadata)}, "dims": {}}
    write_checkpoint(folder / "a.pth", {"model": model, "shards": shards})
    return folder / "a.pth"


def test_metadata_that_would_run_code_are_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "proof"),))

    path = sharded(tmp_path, pickle.dumps(Evil()))
    with pytest.raises(
        DamagedCheckpointError, match=r"posix\.mkdir, whose loading could run code, so it is refused|cannot be read"
    ):
        read_checkpoint(path)
    assert not (tmp_path / "proof").exists()


def test_a_missing_folder_and_a_wrong_checksum_are_damage(tmp_path):
    path = sharded(tmp_path, b"x")
    (tmp_path / "a@1.dcp" / ".metadata").write_bytes(b"y")
    with pytest.raises(DamagedCheckpointError, match=r"a@1\.dcp' is damaged: \.metadata"):
        read_checkpoint(path)
    (tmp_path / "a@1.dcp").rename(tmp_path / "elsewhere")
    with pytest.raises(DamagedCheckpointError, match=r"a@1\.dcp' is missing, .* keep both together"):
        read_checkpoint(path)


def test_a_folder_elsewhere_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no folder of shards beside it"):
        read_checkpoint(sharded(tmp_path, b"x", "../a@1.dcp"))
