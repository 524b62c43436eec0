"""``vision3d-engine replay`` runs a step of a user's script again, as processes of its own."""

import math
import random
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.patience import PATIENCE_S
from tests.stories.terminal import Terminal
from vision3d_engine.writers.step_values import recorded_steps

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
    assert done.stdout.startswith("step 9: epoch 2, iteration 3; replayed from the beginning of the run\n")
    assert f"\nrun folder: {tmp_path / 'run'}\nsamples:\n" in done.stdout
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
    assert "error: replay got step 99; the run has made 3 steps" in done.stderr
    done = replay(tmp_path, SCRIPT, "--step", 3, "--", "--folder", "nowhere")
    assert done.returncode == 1
    assert "error: replay got step 3; there is no run in 'nowhere'" in done.stderr
    done = replay(tmp_path, SCRIPT, "--step", 2, "--run", "mine")
    said = (
        "error: replay got --run mine; no trainer of replay_script.py with this run folder has made step 2. Other run "
    )
    assert f"{said}folders of the script: {tmp_path / 'run'}. Expected is" in done.stderr


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
    assert "first not finite: exp, whose result (2,) holds infinity, in " in done.stdout
    last = done.stdout.splitlines()[-1]
    assert last.startswith("in float64: loss ")
    assert last.endswith("; finite there: the precision is too small for its numbers")


def assert_is_cloud_7(done):
    """Check that the one sample of three whose leaving-out makes a step finite is named."""
    *_, whole, first, second, third, last = done.stdout.splitlines()
    assert whole.startswith("with all samples: loss ")
    assert whole.endswith("; not finite")
    assert sorted(line.rpartition("; ")[2] for line in (first, second, third)) == ["finite", "not finite", "not finite"]
    assert last.startswith("it is sample 7 (cloud-7): vision3d_engine.replay_sample(dataset, 7, epoch=1, seed=")


def test_the_sample_that_makes_a_step_not_finite_is_named_with_the_line_that_loads_it(tmp_path):
    own = ("--fault", "far sample", "--batch_size", "3")
    assert run(tmp_path, *own).returncode == 0
    recorded = recorded_steps(tmp_path / "run" / "logs" / "steps.jsonl")
    step = next(step for step, values in recorded.items() if not math.isfinite(values["loss"]))
    done = replay(tmp_path, SCRIPT, "--step", step, "--vary", "sample", "--", *own)
    assert done.returncode == 0, done.stderr
    assert_is_cloud_7(done)


@pytest.mark.slow
@pytest.mark.parametrize("from_file", [False, True])
def test_the_sample_that_makes_a_step_raise_is_named_from_the_run_and_from_the_file_that_it_leaves(tmp_path, from_file):
    own = ("--batch_size", "3", "--fault", "strict")
    assert run(tmp_path, *own, "--debug").returncode == 1
    (file,) = (tmp_path / "run" / "debug").glob("step-*.pt")
    what = (file, "--script", SCRIPT) if from_file else (SCRIPT, "--step", int(file.stem.removeprefix("step-")))
    done = replay(tmp_path, *what, "--vary", "sample", "--", *own)
    assert done.returncode == 1
    *_, first, second, third, last = done.stderr.splitlines()
    outcomes = [line.partition(": ")[2] for line in (first, second, third)]
    assert outcomes.count("fails, ValueError: a sample is too far") == 2
    assert sum(line.endswith("; finite") for line in outcomes) == 1
    assert last.startswith("it is sample 7 (cloud-7): vision3d_engine.replay_sample(dataset, 7, epoch=1, seed=")


@pytest.mark.slow
def test_where_no_sample_is_to_blame_alone_that_is_said(tmp_path):
    own = ("--fault", "exp", "--batch_size", "3")
    assert run(tmp_path, *own).returncode == 0
    done = replay(tmp_path, SCRIPT, "--step", 4, "--vary", "sample", "--", *own)
    assert done.returncode == 0, done.stderr
    *without, last = done.stdout.splitlines()[-4:]
    assert [line.rpartition("; ")[2] for line in without] == ["not finite"] * 3
    assert last.startswith("leaving out one sample does not help, whichever it is: the fault lies in several of them")


def test_the_debugger_of_a_replay_answers_on_a_terminal_and_waits_for_nobody_without_one(tmp_path):
    assert run(tmp_path).returncode == 0
    words = ("replay", SCRIPT, "--step", 4, "--pdb")
    terminal = Terminal("-m", "vision3d_engine", *words, cwd=tmp_path)
    terminal.read_to(r"\(Pdb\) ")
    terminal.type("p iteration * 100 + len(data_dict['name'])")
    assert "\n402\n" in terminal.read_to(r"\d\n\(Pdb\) ")
    terminal.type("c")
    code, seen = terminal.end()
    assert code == 0, seen
    assert "the same bits as in the run" in seen
    done = replay(tmp_path, *words[1:])
    assert done.returncode == 0, done.stderr
    assert "the debugger is not opened, since standard input is no terminal" in done.stderr


def test_the_clouds_of_a_step_are_shown_until_ctrl_c(tmp_path):
    pytest.importorskip("viser")
    assert run(tmp_path, "--clouds").returncode == 0
    words = ("replay", SCRIPT, "--step", 4, "--view", "--", "--clouds")
    terminal = Terminal("-m", "vision3d_engine", *words, cwd=tmp_path)
    shown = terminal.read_to(r"ssh -L")
    assert "the same bits as in the run" in shown
    port = int(re.search(r"http://127.0.0.1:(\d+)", shown)[1])
    socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S).close()
    terminal.process.send_signal(signal.SIGINT)
    code, seen = terminal.end()
    assert code == 0, seen


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
def test_a_fault_of_one_of_two_processes_is_found_in_its_replay_and_no_sample_of_the_other_is_accused(tmp_path):
    fault = "--fault", "log"
    assert run(tmp_path, *fault, processes=2).returncode == 0
    done = replay(tmp_path, SCRIPT, "--step", 3, "--vary", "sample", "--", *fault)
    assert done.returncode == 0, done.stderr
    assert "\nthe same bits as in the run\n" in done.stdout
    assert "first not finite: process 1: log, whose result (2,) holds infinity, in " in done.stdout
    assert "\nsamples of process 1:\n" in done.stdout
    assert "samples of process 0:" not in done.stdout
    head, whole, why, command = done.stdout.splitlines()[-4:]
    assert head == "share of process 1, by itself:"
    assert whole.endswith("; finite")
    assert why.startswith("it is finite when one process runs it by itself, so no sample of it is to blame alone")
    assert command.endswith("replay_script.py --step 3 --rank 1 --processes 1 -- --fault log")


@pytest.fixture(scope="module")
def far_run_of_two(tmp_path_factory):
    """The folder of a run of two processes with a sample that is too far, step and process that load it, its words."""
    folder, own = tmp_path_factory.mktemp("far"), ("--fault", "far sample", "--batch_size", "3")
    done = run(folder, *own, "--told", "run", processes=2)
    assert done.returncode == 0, done.stderr
    losses = {tuple(map(int, path.name.split("-")[1:])): float(path.read_text()) for path in folder.glob("run-*")}
    return folder, *min(place for place, loss in losses.items() if not math.isfinite(loss)), own


@pytest.mark.slow
def test_of_two_processes_the_share_of_the_one_that_is_to_blame_is_varied(far_run_of_two):
    folder, step, rank, own = far_run_of_two
    done = replay(folder, SCRIPT, "--step", step, "--vary", "sample", "--", *own)
    assert done.returncode == 0, done.stderr
    assert f"\nfirst not finite: process {rank}: " in done.stdout
    assert f"\nsamples of process {rank}:\n" in done.stdout
    assert f"\nshare of process {rank}, by itself:\n" in done.stdout
    assert_is_cloud_7(done)


@pytest.mark.slow
def test_a_share_that_one_process_has_come_to_by_the_steps_of_all_is_varied_in_that_step(far_run_of_two):
    folder, step, rank, own = far_run_of_two
    alone = ("--rank", rank, "--processes", 1)
    done = replay(folder, SCRIPT, "--step", step, *alone, "--vary", "sample", "--", *own)
    assert done.returncode == 0, done.stderr
    assert_is_cloud_7(done)


@pytest.mark.slow
def test_what_one_of_two_processes_raises_is_told_with_its_samples_and_no_sample_is_accused(tmp_path):
    fault = "--fault", "raise on 1"
    assert run(tmp_path, *fault, processes=2).returncode == 1
    done = replay(tmp_path, SCRIPT, "--step", 3, "--vary", "sample", "--", *fault)
    assert done.returncode == 1
    assert "\nprocess 1 has failed: ValueError: planted\nsamples of process 1:\n  " in done.stderr
    assert "\nshare of process 1, by itself:\nwith all samples: loss " in done.stderr
    assert "it is sample" not in done.stderr


@pytest.mark.slow
def test_a_step_that_cannot_be_run_without_a_sample_says_nothing_of_it(tmp_path):
    assert run(tmp_path, "--fault", "far sample").returncode == 0
    recorded = recorded_steps(tmp_path / "run" / "logs" / "steps.jsonl")
    step = next(step for step, values in recorded.items() if not math.isfinite(values["loss"]))
    done = replay(tmp_path, SCRIPT, "--step", step, "--vary", "sample", "--", "--fault", "far sample")
    *_, first, second, last = done.stdout.splitlines()
    assert all("cannot be run, ValueError: Expected more than 1 value per channel" in line for line in (first, second))
    assert last.startswith("2 of the 2 steps without a sample cannot be run, so nothing is known of these samples")


@pytest.mark.slow
def test_a_run_of_two_processes_is_replayed_by_two_that_the_command_starts(tmp_path):
    done = run(tmp_path, processes=2)
    assert done.returncode == 0, done.stderr
    done = replay(tmp_path, SCRIPT, "--step", 5)
    assert done.returncode == 0, done.stderr
    assert "\nthe same bits as in the run\n" in done.stdout


@pytest.fixture(scope="module")
def run_of_two(tmp_path_factory):
    """The folder of a run of two processes, which have told the loss of each step and written one into files."""
    folder = tmp_path_factory.mktemp("two")
    done = run(folder, "--replay_every", "4 iterations", "--told", "run", "--fault", "dump", processes=2)
    assert done.returncode == 0, done.stderr
    return folder


def loss_in(done):
    """The loss that a replay has printed."""
    assert done.returncode == 0, done.stderr
    return next(line.split()[1].rstrip(",") for line in done.stdout.splitlines() if line.startswith("loss "))


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_one_process_replays_the_share_of_another_from_a_snapshot_of_the_very_step_to_the_bit(run_of_two, rank):
    done = replay(run_of_two, SCRIPT, "--step", 5, "--rank", rank)
    assert loss_in(done) == (run_of_two / f"run-5-{rank}").read_text()
    head = f"step 5, share of process {rank} of 2: epoch 2, iteration 2; replayed from replay-000004.pth (step 4)"
    assert done.stdout.startswith(head)
    assert ("the same bits as in the run" in done.stdout) is (rank == 0)


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_one_process_replays_the_step_of_one_of_two_from_its_file_to_the_bit(run_of_two, rank):
    file = run_of_two / "run" / "debug" / ("step-000004-rank1.pt" if rank else "step-000004.pt")
    done = replay(run_of_two, file, "--script", SCRIPT, "--", "--fault", "no data")
    assert loss_in(done) == (run_of_two / f"run-4-{rank}").read_text()
    assert ("the same bits as in the run" in done.stdout) is (rank == 0)


def test_a_share_from_further_back_needs_one_process_for_all_steps_and_is_equal_to_a_tolerance_then(run_of_two):
    done = replay(run_of_two, SCRIPT, "--step", 4, "--rank", 1)
    assert done.returncode == 1
    assert "error: replay --rank 1 of step 4 starts from the beginning of the run, which lies" in done.stderr
    done = replay(run_of_two, SCRIPT, "--step", 4, "--processes", 1, "--rank", 1)
    assert float(loss_in(done)) == pytest.approx(float((run_of_two / "run-4-1").read_text()), rel=1e-3)
    done = replay(run_of_two, SCRIPT, "--epoch", 2, "--iteration", 3, "--processes", 1)
    assert float(loss_in(done)) == pytest.approx(float((run_of_two / "run-6-0").read_text()), rel=1e-3)
    assert "equal to the run to 0.001 of each number, not to the bit: one process has made" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--rank", "2"), "replay got --rank 2; the run had 2 processes, counted from 0"),
        (("--rank", "1", "--", "--fault", "sync"), "follow from several: its model has SyncBatchNorm. Expected is"),
        (("--rank", "1", "--", "--fault", "sync setting"), "follow from several: its model has SyncBatchNorm"),
        (("--rank", "1", "--", "--fault", "exchange"), "it says 'Default process group has not been initialized"),
        (("--", "--parallel", "fsdp2"), "replay got trainer.parallel: fsdp2, whose modules and gradients"),
    ],
)
def test_what_cannot_be_replayed_is_refused_and_said(run_of_two, words, said):
    done = replay(run_of_two, SCRIPT, "--step", 5, *words)
    assert done.returncode == 1
    assert "error: replay got " in done.stderr
    assert said in done.stderr
