"""Real processes that are told to stop: they save, exit with the right code, and resume to the same bits."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.patience import PATIENCE_S, eventually
from tests.stories.forking import Forked
from tests.stories.launching import outputs_of, results_of, saved_steps, start_ranks
from tests.stories.launching import start as fork

SCRIPT = Path(__file__).parent / "noisy_script.py"


def start(folder, kind="epoch", step_s=0.0, processes=1, gate="", **settings):
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    words = [*launcher, SCRIPT, folder, kind, step_s, json.dumps(settings)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GATES": gate}
    return Forked(words, env=environment, stderr=subprocess.STDOUT)


def finish(process):
    """Return exit code, and what was printed from now on."""
    text, _ = process.communicate(timeout=PATIENCE_S)
    return process.returncode, text


def result(folder, kind="epoch", processes=1, **settings):
    """Return the digest of a run that nobody stops."""
    words = (SCRIPT, folder, kind, 0.0, json.dumps(settings))
    (found,) = results_of(start_ranks(*words, size=processes) if processes > 1 else [fork(*words)])
    return found


def wait_for(process, word):
    for line in process.stdout:
        if word in line:  # two processes may write into one line
            return
    pytest.fail(f"the script ended before it said {word}")


def open_gate(folder, place):
    folder.with_name(f"{folder.name}.{place}").touch()


def steps_in(text):
    return [int(line.split()[1]) for line in text.splitlines() if line.startswith("STEP")]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    return {kind: result(tmp_path_factory.mktemp("straight") / "run", kind=kind) for kind in ("epoch", "iter")}


@pytest.mark.parametrize(
    ("name", "code", "kind"), [("SIGTERM", 143, "epoch"), ("SIGINT", 130, "iter"), ("SIGUSR1", 138, "epoch")]
)
def test_a_signal_saves_at_the_end_of_the_step_and_the_run_resumes_to_the_same_bits(
    name, code, kind, straight, tmp_path
):
    process = start(tmp_path / "run", kind, gate="train 2.3")
    wait_for(process, "AT GATE")
    process.send_signal(getattr(signal, name))
    open_gate(tmp_path / "run", "train 2.3")
    assert finish(process)[0] == code
    process = start(tmp_path / "run", kind, resume=True)
    found_code, text = finish(process)
    assert found_code == 0
    assert steps_in(text)[0] == 10, "it goes on where it was stopped, in mid-epoch"
    assert text.partition("RESULT ")[2].split()[0] == straight[kind]


def test_a_signal_in_validation_ends_it_at_once_and_costs_no_training(straight, tmp_path):
    process = start(tmp_path / "run", gate="val 1.2")
    wait_for(process, "AT GATE")
    process.terminate()
    open_gate(tmp_path / "run", "val 1.2")
    code, text = finish(process)
    assert code == 143
    assert "VALIDATES" not in text
    code, text = finish(start(tmp_path / "run", resume=True))
    assert "STEP 6\n" not in text
    assert "STEP 7\n" in text
    assert text.partition("RESULT ")[2].split()[0] == straight["epoch"]


def test_a_second_ctrl_c_ends_at_once(tmp_path):
    process = start(tmp_path / "run", gate="train 1.1")
    wait_for(process, "AT GATE")
    process.send_signal(signal.SIGINT)
    while process.poll() is None:  # the gate is closed; a busy machine may hand the presses on together
        time.sleep(1.3)  # what comes within a second is the same press, handed on by a launcher
        process.send_signal(signal.SIGINT)
    code, text = finish(process)
    assert code in {130, -signal.SIGINT}
    assert "KeyboardInterrupt" in text


def test_max_time_stops_with_75_and_the_run_resumes(straight, tmp_path):
    code, text = finish(start(tmp_path / "run", step_s=0.3, max_time="1 s"))
    assert code == 75
    assert "max_time: stopped; 'checkpoint.pth' is saved" in text
    assert result(tmp_path / "run", resume=True) == straight["epoch"]


def test_a_slurm_job_is_queued_again_when_asked_for(straight, tmp_path, monkeypatch):
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "scontrol").write_text(f"#!/bin/sh\necho $@ > {tmp_path}/asked\n")
    (tools / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    process = start(tmp_path / "run", gate="train 1.4", requeue=True)
    wait_for(process, "AT GATE")
    process.send_signal(signal.SIGUSR1)
    open_gate(tmp_path / "run", "train 1.4")
    code, text = finish(process)
    assert code == 138
    assert "scontrol requeue 4711: done" in text
    assert (tmp_path / "asked").read_text() == "requeue 4711\n"
    assert result(tmp_path / "run", resume=True) == straight["epoch"]


def test_a_timed_cadence_saves_between_epochs(tmp_path):
    process = start(tmp_path / "run", step_s=0.3, gate="train 1.6", save_every="0.5 s")
    eventually(lambda: saved_steps(tmp_path / "run"))
    process.kill()
    finish(process)
    code, text = finish(start(tmp_path / "run", resume=True))
    assert code == 0
    assert 1 < steps_in(text)[0] <= 6


@pytest.fixture(scope="module")
def straight_of_two(tmp_path_factory):
    return result(tmp_path_factory.mktemp("straight") / "run", processes=2)


def test_two_processes_agree_on_the_step_although_one_gets_the_signal(straight_of_two, tmp_path):
    process = start(tmp_path / "run", step_s=1.0, processes=2, gate="train 1.2")
    wait_for(process, "AT GATE")
    (one,) = children(process.pid)[:1]
    os.kill(one, signal.SIGTERM)
    open_gate(tmp_path / "run", "train 1.2")
    code, text = finish(process)
    assert code != 0  # torchrun reports a worker that did not end with 0
    assert "SIGTERM: stopped; 'checkpoint.pth' is saved" in text
    assert result(tmp_path / "run", processes=2, resume=True) == straight_of_two


def test_two_processes_killed_at_once_resume_to_the_same_bits(straight_of_two, tmp_path):
    words = (SCRIPT, tmp_path / "run", "epoch", 0.0)
    processes = start_ranks(*words, json.dumps({"save_every": "4 iterations"}), GATES="train 2.5")
    eventually(lambda: saved_steps(tmp_path / "run") == 8)
    for process in processes:
        process.kill()
    assert [code for code, _, _ in outputs_of(processes)] == [-signal.SIGKILL] * 2
    resumed = outputs_of(start_ranks(*words, json.dumps({"save_every": "4 iterations", "resume": True})))
    assert [code for code, _, _ in resumed] == [0, 0], resumed
    assert "in mid-epoch" in resumed[0][2]
    assert resumed[0][1].partition("RESULT ")[2].split()[0] == straight_of_two


def children(pid):
    """Return the processes that a launcher has started to train, without their data workers."""
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=True)
    return [int(word) for word in listed.stdout.split()]
