"""Scripts in the manner of the 2022 engine's users run unmodified, as real processes."""

import os
from pathlib import Path

import pytest
import torch

from tests.stories.forking import run_forked

SCRIPTS = Path(__file__).parent / "legacy"


@pytest.fixture
def script(tmp_path):
    """Return a function that runs a script in the run folder and returns what it printed."""

    def run(name, *flags, fails=False):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"}
        done = run_forked([SCRIPTS / name, *flags], cwd=tmp_path, env=environment)
        assert (done.returncode != 0) == fails, done.stderr
        return done.stdout + done.stderr

    return run


def checkpoints(folder):
    return sorted(path.name for path in (folder / "output" / "checkpoints").iterdir())


def test_an_epoch_based_script_trains_resumes_and_keeps_its_best_models(script, tmp_path):
    text = script(
        "trainval_epoch.py", "--log_steps", "2", "--save_latest_n_models", "1", "--cudnn_deterministic", "False"
    )
    assert "finished epoch 3 steps 18 resume False" in text
    assert checkpoints(tmp_path) == [
        "best_accuracy.pth",
        "best_val_loss.pth",
        "checkpoint.prev.pth",
        "checkpoint.pth",
        "epoch-3.pth",
    ]
    assert "finished epoch 3 steps 18 resume True" in script("trainval_epoch.py", "--resume")


def test_an_iteration_based_script_with_a_flag_of_its_own(script, tmp_path):
    text = script("trainval_iter.py", "--test_area", "Area_1", "--debug", "--local_rank=0")
    assert "finished epoch 3 area Area_1 lr 0.001" in text
    assert "mAcc" in (tmp_path / "output" / "metrics.jsonl").read_text()
    best = torch.load(tmp_path / "output" / "checkpoints" / "best_mAcc.pth", weights_only=True)
    assert best["metadata"]["total_steps"] == best["metadata"]["epoch"] * 6


def test_testing_scripts_for_single_cases_and_for_batches(script, tmp_path):
    script("trainval_epoch.py")
    text = script("eval_single.py", "--checkpoint", "output/checkpoints/best_accuracy.pth")
    assert "tested 6 dict_keys(['accuracy'])" in text
    assert "cases [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]" in script("eval_batch.py", "--test_epoch", "2")
    assert "no checkpoint is given" in script("eval_batch.py", fails=True)
    assert "there: " in script("eval_batch.py", "--test_epoch", "77", fails=True)


def test_the_old_tools_work_by_themselves_and_two_trainers_share_a_process(script, tmp_path):
    text = script("tools_and_train.py", "--rounds", "2", "--device", "cpu")
    assert "rounds 2 epoch: 1, x: 1.000" in text
    assert "EngineError old is deprecated; use something_new instead" in text
    assert "rounds 2" in (tmp_path / "tool.log").read_text()
