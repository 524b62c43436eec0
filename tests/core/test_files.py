"""Files of a run have the permissions that any program of the user would give them, and names that stay."""

import os
import threading
from pathlib import Path

import pytest

from tests.toys import ToyEpochTrainer, settings
from vision3d_engine.core.files import absolute_path

pytestmark = pytest.mark.skipif(os.name != "posix", reason="permissions are those of POSIX")


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_files_of_a_run_have_the_permissions_that_the_umask_leaves(umask, tmp_path):
    before = os.umask(umask)
    try:
        toy = ToyEpochTrainer(settings(tmp_path / "run", log_steps=1))
        toy.save_best_model_on_metric("mae", largest=False)
        toy.run()
    finally:
        os.umask(before)
    found = list((tmp_path / "run").rglob("*"))
    assert {"best_mae.pth", "checkpoint.pth", "metrics.jsonl", "config.yaml"} <= {path.name for path in found}
    modes = {(path.is_dir(), path.stat().st_mode & 0o777) for path in found}
    assert modes == {(True, 0o777 & ~umask), (False, 0o666 & ~umask)}


def test_no_thread_of_a_run_touches_the_umask_of_the_process(tmp_path, monkeypatch):
    def refuse(mask):
        raise AssertionError(f"umask({mask:o}) in {threading.current_thread().name}")

    monkeypatch.setattr(os, "umask", refuse)
    ToyEpochTrainer(settings(tmp_path, max_epoch=2)).run()


def test_a_path_is_absolute_whatever_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert absolute_path("~/a") == tmp_path / "a"
    assert absolute_path("~nobody-of-this-name/a") == Path.cwd() / "~nobody-of-this-name/a"
