"""A real process whose files cannot be written any more: old ones stay, training goes on, no score without its file."""

import json
import os
from pathlib import Path

import pytest
import torch

from tests.stories.forking import run_forked

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs a limit on the size of files")


def story(folder, *words):
    root = Path(__file__).parents[2]
    command = [Path(__file__).with_name("full_disk_script.py"), folder, *words]
    paths = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths}
    done = run_forked(command, env=environment)
    assert done.stdout, done.stderr
    text = "".join(path.read_text() for path in (folder / "logs").iterdir())
    saved = {
        path.name: torch.load(path, weights_only=True, map_location="cpu")
        for path in (folder / "checkpoints").glob("*.pth")
    }
    assert not list((folder / "checkpoints").glob(".*"))
    return json.loads(done.stdout), saved, text


def epochs(saved):
    return {name: state["metadata"]["epoch"] for name, state in saved.items()}


@pytest.mark.parametrize("mode", ["async", pytest.param("sync", marks=pytest.mark.slow)])
def test_a_disk_that_is_full_for_a_while_costs_the_files_of_that_time_only(mode, tmp_path):
    end, saved, text = story(tmp_path, mode, "heals")
    assert end == {"ended": "well", "epoch": 4, "best": 0.8}
    assert epochs(saved) == {
        "best_score.pth": 3,
        "checkpoint.pth": 4,
        "checkpoint.prev.pth": 4,
        "epoch-1.pth": 1,
        "epoch-3.pth": 3,
        "epoch-4.pth": 4,
    }
    assert saved["checkpoint.pth"]["ckpt_manager"]["best_scores"]["score"]["score"] == 0.8
    assert saved["checkpoint.pth"]["ckpt_manager"]["saved_checkpoints"] == ["epoch-1.pth", "epoch-3.pth", "epoch-4.pth"]
    for name in ("checkpoint.pth", "epoch-2.pth", "best_score.pth"):
        assert f"{name}': File too large; the file that was there before stays as it was. Training goes on" in text


@pytest.mark.parametrize("mode", [pytest.param("async", marks=pytest.mark.slow), "sync"])
def test_a_disk_that_stays_full_lets_the_run_end_with_the_failure_and_the_old_files(mode, tmp_path):
    end, saved, _ = story(tmp_path, mode, "stays")
    assert end["ended"].startswith("FolderError: cannot write ")
    assert (end["epoch"], end["best"]) == (4, 0.5)
    expected = {"best_score.pth": 1, "checkpoint.pth": 1, "checkpoint.prev.pth": 1, "epoch-1.pth": 1}
    assert epochs(saved) == expected
    assert saved["checkpoint.pth"]["ckpt_manager"]["best_scores"]["score"]["score"] == 0.5
