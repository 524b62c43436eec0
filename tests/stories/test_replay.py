"""``vision3d-engine replay`` runs a step of a user's script again, as processes of its own."""

import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.patience import PATIENCE_S

SCRIPT = Path(__file__).with_name("replay_script.py")
ROOT = Path(__file__).parents[2]
_FEW = "--max-epoch 2 --num-train 240 --num-val 20 --num-points 64 --batch-size 20 --no-picture --output-dir run"
_ROOMS = "--trainer.max_epoch 2 --trainer.log_steps 5 --data.num_train 48 --data.num_val 4 --exp.output_dir run"
#: scripts with their arguments, whose runs have 24 steps
RUNS = {
    "demo": (ROOT / "src" / "vision3d_engine" / "__main__.py", ["demo", *_FEW.split()]),
    "segmentation": (ROOT / "examples" / "segmentation" / "train.py", _ROOMS.split()),
}


def run(folder, *words, processes=1, script=SCRIPT):
    several = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    command = [sys.executable, *several, str(script), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, timeout=PATIENCE_S)


def replay(folder, *words):
    command = [sys.executable, "-m", "vision3d_engine", "replay", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, timeout=PATIENCE_S)


def test_a_step_of_a_run_is_replayed_and_one_with_other_arguments_is_refused(tmp_path):
    assert run(tmp_path, "--scale", "2").returncode == 0
    done = replay(tmp_path, SCRIPT, "--epoch", 2, "--iteration", 3, "--", "--scale", 2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("step 9: epoch 2, iteration 3; replayed from the beginning of the run\nsamples:\n")
    assert "\nthe same bits as in the run\n" in done.stdout
    done = replay(tmp_path, SCRIPT, "--step", 9, "--", "--scale", 3)
    assert done.returncode == 1
    assert "not the bits of the run" in done.stdout
    assert "error: replay_script.py has other numbers in step 9 than the run had. Usual causes" in done.stderr


def test_a_step_that_fails_shows_its_samples_and_one_that_never_was_is_refused(tmp_path):
    assert run(tmp_path, "--fault", "shape").returncode == 1
    done = replay(tmp_path, SCRIPT, "--step", 4, "--", "--fault", "shape")
    assert done.returncode == 1
    assert "error: replay_script.py failed with code 1, before or in step 4" in done.stderr
    assert "replay_sample(dataset" in done.stderr.split("error: ")[-1]
    done = replay(tmp_path, SCRIPT, "--step", 99)
    assert "error: replay_script.py ended before step 99" in done.stderr


def test_a_step_in_a_file_is_replayed_elsewhere_without_the_data(tmp_path):
    assert run(tmp_path, "--fault", "dump").returncode == 0
    moved = (tmp_path / "run" / "debug" / "step-000004.pt").rename(tmp_path / "mine.pt")
    done = replay(tmp_path, moved, "--script", SCRIPT, "--", "--folder", "other", "--fault", "no data")
    assert done.returncode == 0, done.stderr
    assert "step 4: epoch 1, iteration 4; replayed from mine.pt (step 3)\n" in done.stdout
    assert "the run has recorded nothing of this step to compare with" in done.stdout
    assert not (tmp_path / "other").exists()


def test_an_overflow_is_finite_in_float64_and_that_is_said(tmp_path):
    assert run(tmp_path, "--fault", "exp").returncode == 0
    done = replay(tmp_path, SCRIPT, "--step", 4, "--vary", "precision", "--", "--fault", "exp")
    assert done.returncode == 0, done.stderr
    assert "first not finite: exp, whose result (2,) is not finite in " in done.stdout
    last = done.stdout.splitlines()[-1]
    assert last.startswith("in float64: loss ")
    assert last.endswith("; finite there: the precision is too small for its numbers")


def test_the_sample_whose_loading_ends_its_worker_is_named_in_the_run_and_in_its_replay(tmp_path):
    fault = "--fault", "dead worker"
    said = "a data worker has died, whose last was sample 7 (epoch 1, position "
    assert said in run(tmp_path, *fault).stderr
    done = replay(tmp_path, SCRIPT, "--step", 6, "--", *fault)
    assert (done.returncode, said in done.stderr) == (1, True), done.stderr


@pytest.mark.parametrize("count", [1, pytest.param(20, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
@pytest.mark.parametrize("name", RUNS)
def test_random_steps_of_a_finished_run_have_its_bits(tmp_path, name, count):
    script, words = RUNS[name]
    done = run(tmp_path, *words, script=script)
    assert done.returncode == 0, done.stderr
    for step in random.Random(17).sample(range(1, 25), count):
        done = replay(tmp_path, script, "--step", step, "--", *words)
        assert done.returncode == 0, done.stderr
        assert f"step {step}: epoch {(step - 1) // 12 + 1}, iteration {(step - 1) % 12 + 1}; " in done.stdout
        assert "\nthe same bits as in the run\n" in done.stdout


@pytest.mark.slow
def test_a_step_in_which_a_process_waits_for_ever_does_so_in_its_replay_and_its_line_is_named(tmp_path):
    fault = "--fault", "deadlock"
    assert run(tmp_path, *fault, processes=2).returncode != 0
    (written,) = (tmp_path / "run" / "debug").glob("hang-*-rank0.txt")
    line = next(line for line in written.read_text().splitlines() if "wait_for_ever" in line)
    done = replay(tmp_path, SCRIPT, "--step", 3, "--", *fault)
    assert "no step for 4 s (trainer.hang_after) in train epoch 1, iteration 3" in done.stderr
    assert line in done.stderr.split("error: ")[-1]


@pytest.mark.slow
def test_a_fault_of_one_of_two_processes_is_found_in_its_replay(tmp_path):
    fault = "--fault", "log"
    assert run(tmp_path, *fault, processes=2).returncode == 0
    done = replay(tmp_path, SCRIPT, "--step", 3, "--", *fault)
    assert done.returncode == 0, done.stderr
    assert "\nthe same bits as in the run\n" in done.stdout
    assert "first not finite: process 1: log, whose result (2,) is not finite in " in done.stdout


@pytest.mark.slow
def test_a_run_of_two_processes_is_replayed_by_two_that_the_command_starts(tmp_path):
    done = run(tmp_path, processes=2)
    assert done.returncode == 0, done.stderr
    done = replay(tmp_path, SCRIPT, "--step", 5)
    assert done.returncode == 0, done.stderr
    assert "\nthe same bits as in the run\n" in done.stdout
