"""A folder in use stays in use until its run ends, whatever else the process and its children do."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.patience import PATIENCE_S
from vision3d_engine import FolderInUseError
from vision3d_engine.core.locks import locked_folder

_TAKE = "import sys; from pathlib import Path; from vision3d_engine.core.locks import locked_folder as lock\n"
_TAKE += "with lock(Path(sys.argv[1])): print('taken')"


def is_free(folder):
    found = subprocess.run([sys.executable, "-c", _TAKE, folder], capture_output=True, text=True, check=False)
    return found.returncode == 0 or ("FolderInUseError" not in found.stderr and pytest.fail(found.stderr))


def test_a_reader_in_the_process_does_not_free_the_folder(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    with locked_folder(folder):
        shutil.copytree(folder, tmp_path / "backup")
        assert not is_free(folder)
    assert not list(folder.iterdir())
    assert is_free(folder)


def test_the_same_process_is_refused_under_any_name_of_the_folder(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "run")
    refused = pytest.raises(FolderInUseError, match="in use by a run of this process")
    with locked_folder(tmp_path / "run"), refused, locked_folder(tmp_path / "link"):
        pass


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_neither_keeps_nor_frees_the_folder(tmp_path):
    context = multiprocessing.get_context("fork")

    def work(started):
        started.set()
        time.sleep(600)

    def run(started, worker_of):
        with locked_folder(tmp_path):
            short = context.Process(target=int)
            short.start()
            short.join()
            worker = context.Process(target=work, args=(started,))
            worker.start()
            worker_of.send(worker.pid)
            worker.join()

    started, (mine, theirs) = context.Event(), context.Pipe()
    owner = context.Process(target=run, args=(started, theirs))
    owner.start()
    worker = mine.recv()
    assert started.wait(PATIENCE_S)
    assert not is_free(tmp_path)
    owner.kill()
    owner.join()
    try:
        os.kill(worker, 0)  # lives
        assert is_free(tmp_path)
    finally:
        os.kill(worker, signal.SIGKILL)


def test_an_owner_that_the_disk_had_no_space_for_is_another_process(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    refused = pytest.raises(FolderInUseError, match="in use by another process")
    with locked_folder(tmp_path), refused, locked_folder(tmp_path):
        pass
