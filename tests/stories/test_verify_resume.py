"""``vision3d-engine verify-resume`` proves exactness of a user's script, or names what breaks it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.patience import eventually, skip_if_ignored
from tests.stories.forking import run_forked
from vision3d_engine.core.children import is_running

SCRIPT = str(Path(__file__).with_name("forgetful_script.py"))
GROUP = "SIGTERM to the process group"


def verify(folder, *words):
    return run_forked(["-m", "vision3d_engine", "verify-resume", *words], cwd=folder, timeout=1500)


def marks_of(done):
    """The first word of what is said about each place."""
    return [line.split()[0] for line in done.stdout.splitlines() if " in " in line and "SIG" in line]


def test_an_exact_script_is_proven_in_training_and_validation_and_its_folder_is_not_touched(tmp_path):
    done = verify(tmp_path, "--steps", 6, "--kills", 2, SCRIPT)
    assert done.returncode == 0, done.stderr
    first, *places, last = done.stdout.splitlines()
    assert first == (
        "forgetful_script.py: 6 training steps, 3 epochs of at most 2 batches; kills: 2, at places chosen by seed 0"
    )
    assert [place.rsplit(", iteration", 1)[0] for place in places] == [
        "  same bits  SIGKILL in train_step, epoch 2",
        f"  same bits  {GROUP} in val_step, epoch 2",
    ]
    assert last == "the same bits: 2 of 2 resumed runs of forgetful_script.py are the run that was not interrupted"
    assert not list(tmp_path.iterdir())


def test_what_is_forgotten_is_named_with_its_place_its_values_and_the_usual_cause(tmp_path):
    done = verify(tmp_path, "--steps", 6, "--kills", 1, SCRIPT, "--fault", "Counter")
    assert done.returncode == 1
    assert "  differs    SIGKILL in train_step, epoch 2, iteration 2\n" in done.stdout
    assert "first at after_backward, epoch 2, iteration 2: results differ: loss (was " in done.stdout
    assert "attributes that differ too: self.factor (was 5.0, is 2.0)" in done.stdout
    assert "error: 1 of 1 resumed runs of forgetful_script.py are not the run that was not interrupted" in done.stderr
    assert "\nresults: " in done.stderr
    assert "self.register_state(name, object)" in done.stderr


def test_a_script_that_fails_shows_its_error(tmp_path):
    (tmp_path / "bad.py").write_text("raise ValueError('no data here')")
    done = verify(tmp_path, "bad.py")
    assert done.returncode == 1
    assert "bad.py, run straight, ended with 1 before the first hook" in done.stderr
    assert "no data here" in done.stderr


FORGOTTEN = {
    "PythonGenerator": ("the batch differs in ['x']", "self.own"),
    "NumpyGenerator": ("results differ: loss", "self.own"),
    "HookDraws": ("before_val_step, epoch 2, iteration 1: the generator of python", "Drawing.calls (was 5, is 1)"),
    "Buffer": ("results differ: loss", "self.model.size, a buffer with persistent=False"),
    "History": ("at after_val_epoch, epoch 2: results differ: smooth", "self.history"),
    "Data": ("the batch differs in ['x']", "self.train_loader.dataset.shift (was 1.0, is 0.0)"),
    "ExtraState": ("results differ: loss", "self.model.seen"),
    "State": ("results differ: loss", "state 'curriculum'.speed"),
    "Schedule": ("at after_train_epoch, epoch 2: optimizer differ: ['param_groups'][0]['lr']", "self.warmup.steps"),
    "SecondOptimizer": ("weights differ: ['layers.2.weight'], ['layers.2.bias']", "self.second"),
    "BeforeEpoch": ("results differ: loss", "self.factor (was 2.25, is 1.5)"),
    "Loader": ("the batch differs in ['x']", "self.train_loader.order"),
    "AppendsBeforeEpoch": ("results differ: loss", "self.factor (was 2, is 3)"),
}


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("fault", FORGOTTEN)
def test_each_planted_fault_is_found_and_the_object_that_was_forgotten_is_named(fault, tmp_path):
    done = verify(tmp_path, "--kills", 1, SCRIPT, "--fault", fault)
    assert done.returncode == 1, done.stdout
    difference, attribute = FORGOTTEN[fault]
    assert difference in done.stdout
    assert attribute in done.stdout.partition("attributes that differ too: ")[2]


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_state_in_a_persistent_worker_is_found(tmp_path):
    done = verify(tmp_path, "--kills", 1, SCRIPT, "--fault", "WorkerState", "--workers", 1)
    assert done.returncode == 1, done.stdout
    assert "the batch differs in ['x']" in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("fault", ["DrawsAfterEpoch", "AdvancesBeforeEpoch", "ChannelsLast"])
def test_what_hooks_draw_what_they_advance_and_how_weights_lie_is_proven(fault, tmp_path):
    done = verify(tmp_path, "--kills", 5, SCRIPT, "--fault", fault)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize(
    ("fault", "marks"),
    [
        ("UnseededHooks", ["same", "differs", "differs", "same", "differs"]),  # not in mid-epoch
        ("AdvancesTwice", ["differs", "differs", "differs", "differs", "differs"]),
        ("Momentum", ["differs", "differs", "differs", "differs", "differs"]),
    ],
)
def test_what_an_engine_or_an_optimizer_restores_wrongly_is_found_where_it_matters(fault, marks, tmp_path):
    done = verify(tmp_path, "--kills", 5, SCRIPT, "--fault", fault)
    assert done.returncode == 1
    assert marks_of(done) == marks, done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_what_breaks_only_between_a_validation_and_its_checkpoint_is_found_there_and_only_there(tmp_path):
    done = verify(tmp_path, "--kills", 4, SCRIPT, "--fault", "AppendsAfterValidation")
    assert done.returncode == 1, done.stdout
    assert marks_of(done) == ["same", "same", "differs", "same"]
    assert "differs    SIGKILL in after_val_epoch, epoch 2 (between validation and checkpoint)" in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("fault", ["HookGenerator", "Clock"])
def test_a_script_that_does_not_repeat_itself_is_told_from_one_that_does_not_resume(fault, tmp_path):
    done = verify(tmp_path, "--kills", 1, SCRIPT, "--fault", fault)
    assert done.returncode == 1
    assert "does not repeat itself, even without a resume: run twice, it differs first at " in done.stderr
    assert "epoch 1, iteration 1: " in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_resume_that_fails_is_named_with_the_place_of_the_kill_and_its_error(tmp_path):
    done = verify(tmp_path, "--kills", 1, SCRIPT, "--fault", "Raises")
    assert done.returncode == 1
    assert "resumed after SIGKILL in train_step, epoch 2, iteration 4, ended with 1" in done.stderr
    assert "no level here" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_an_attribute_that_no_number_follows_is_said_but_not_an_error_and_the_time_is_not_said(tmp_path):
    done = verify(tmp_path, "--kills", 1, SCRIPT, "--fault", "Harmless")
    assert done.returncode == 0, done.stdout
    assert "lost, though no number shows it yet: self.calls (was 12, is 6)\n" in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.timeout(1500)
def test_an_exact_script_with_workers_is_proven_at_every_kind_of_place_by_both_signals(tmp_path):
    done = verify(tmp_path, "--kills", 26, SCRIPT, "--workers", 2)
    assert done.returncode == 0, done.stdout + done.stderr
    kills = [line.partition("same bits  ")[2] for line in done.stdout.splitlines() if "same bits  " in line]
    found = {(kill.partition(" ")[0], kill.partition(" in ")[2].split(",")[0].split(" (")[0]) for kill in kills}
    steps = [f"{when}_{step}" for step in ("train_step", "val_step") for when in ("before", "after")]
    epochs = [f"{when}_{epoch}" for epoch in ("train_epoch", "val_epoch") for when in ("before", "after")]
    moments = ["train_step", "val_step", "before_train", "after_backward", "after_log", *steps, *epochs]
    assert found == {(signal, moment) for signal in ("SIGKILL", "SIGTERM") for moment in moments}


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_trainer_by_iterations_is_proven_as_well(tmp_path):
    done = verify(tmp_path, "--kills", 6, "--seed", 5, SCRIPT, "--by_iterations")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "12 training steps, 3 epochs of at most 4 batches; kills: 6, at places chosen by seed 5" in done.stdout


@pytest.mark.parametrize(
    "number",
    [signal.SIGINT, *(pytest.param(number, marks=pytest.mark.slow) for number in (signal.SIGTERM, signal.SIGHUP))],
)
def test_a_verification_that_is_stopped_leaves_no_process_and_no_folder(number, tmp_path):
    skip_if_ignored(number)
    (tmp_path / "temporary").mkdir()
    (tmp_path / "waits.py").write_text(
        "import os, pathlib, time\npathlib.Path('pid.part').write_text(str(os.getpid()))\n"
        "os.replace('pid.part', 'pid')\ntime.sleep(600)\n"
    )
    command = [sys.executable, "-m", "vision3d_engine", "verify-resume", "waits.py"]
    environment = {**os.environ, "TMPDIR": str(tmp_path / "temporary")}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment)
    while not (tmp_path / "pid").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(120) == 128 + number
    assert not is_running(int((tmp_path / "pid").read_text()))
    assert not list((tmp_path / "temporary").iterdir())


@pytest.mark.parametrize("words", [("verify-resume", "waits.py"), ("replay", "waits.py", "--step", "1")])
def test_the_script_of_a_command_that_is_killed_ends_by_itself(words, tmp_path):
    (tmp_path / "waits.py").write_text(
        "import os, pathlib, time\npathlib.Path('pid.part').write_text(str(os.getpid()))\n"
        "os.replace('pid.part', 'pid')\ntime.sleep(600)\n"
    )
    process = subprocess.Popen([sys.executable, "-m", "vision3d_engine", *words], cwd=tmp_path)
    eventually((tmp_path / "pid").exists)
    process.kill()
    process.wait()
    eventually(lambda: not is_running(int((tmp_path / "pid").read_text())))


@pytest.mark.slow
def test_a_run_is_killed_in_any_of_its_validation_sets(tmp_path):
    script = Path(__file__).with_name("sets_script.py")
    done = verify(tmp_path, "--steps", 6, "--kills", 2, "--seed", 0, script, "x")
    assert done.returncode == 0, done.stderr
    assert f"  same bits  {GROUP} in val_step, epoch 2, iteration 2 of 'hard'" in done.stdout
