"""Real processes that are told to stop: they save, exit with the right code, and resume to the same bits."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "noisy_script.py"


def start(folder, kind="epoch", step_s=0.0, processes=1, **settings):
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    words = [str(SCRIPT), str(folder), kind, str(step_s), json.dumps(settings)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *launcher, *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process):
    """Return exit code, and what was printed from now on."""
    text, _ = process.communicate(timeout=120)
    return process.returncode, text


def result(folder, **options):
    code, text = finish(start(folder, **options))
    assert code == 0, text
    return text.partition("RESULT ")[2].split()[0]


def wait_for(process, word):
    for line in process.stdout:
        if word in line:  # two processes may write into one line
            return
    pytest.fail(f"the script ended before it said {word}")


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    return {kind: result(tmp_path_factory.mktemp("straight") / "run", kind=kind) for kind in ("epoch", "iter")}


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130), ("SIGUSR1", 138)])
@pytest.mark.parametrize("kind", ["epoch", "iter"])
def test_a_signal_saves_at_the_end_of_the_step_and_the_run_resumes_to_the_same_bits(
    name, code, kind, straight, tmp_path
):
    process = start(tmp_path / "run", kind, 0.2)
    wait_for(process, "STEP 8")
    process.send_signal(getattr(signal, name))
    assert finish(process)[0] == code
    process = start(tmp_path / "run", kind, resume=True)
    found_code, text = finish(process)
    assert found_code == 0
    steps = [int(line.split()[1]) for line in text.splitlines() if line.startswith("STEP")]
    assert steps[0] in {9, 10, 11}, "it goes on where it was stopped, in mid-epoch"
    assert text.partition("RESULT ")[2].split()[0] == straight[kind]


def test_a_signal_in_validation_ends_it_at_once_and_costs_no_training(straight, tmp_path):
    process = start(tmp_path / "run", step_s=0.3)
    wait_for(process, "VALIDATES")
    process.terminate()
    code, text = finish(process)
    assert code == 143
    assert text.count("VALIDATES") < 3
    code, text = finish(start(tmp_path / "run", resume=True))
    assert "STEP 6\n" not in text
    assert "STEP 7\n" in text
    assert text.partition("RESULT ")[2].split()[0] == straight["epoch"]


def test_a_second_ctrl_c_ends_at_once(tmp_path):
    process = start(tmp_path / "run", step_s=30)
    time.sleep(0.1)
    while not (tmp_path / "run" / "config.yaml").exists():
        time.sleep(0.1)
    time.sleep(2.0)  # into the first step
    process.send_signal(signal.SIGINT)
    time.sleep(1.3)
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    code, text = finish(process)
    assert time.monotonic() - began < 10
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
    process = start(tmp_path / "run", step_s=0.2, requeue=True)
    wait_for(process, "STEP 3")
    process.send_signal(signal.SIGUSR1)
    code, text = finish(process)
    assert code == 138
    assert "scontrol requeue 4711: done" in text
    assert (tmp_path / "asked").read_text() == "requeue 4711\n"
    assert result(tmp_path / "run", resume=True) == straight["epoch"]


def test_a_timed_cadence_saves_between_epochs(tmp_path):
    process = start(tmp_path / "run", step_s=0.2, save_every="0.5 s")
    wait_for(process, "STEP 5")
    process.kill()
    finish(process)
    code, text = finish(start(tmp_path / "run", resume=True))
    steps = [int(line.split()[1]) for line in text.splitlines() if line.startswith("STEP")]
    assert code == 0
    assert 1 < steps[0] < 6


def test_two_processes_agree_on_the_step_although_one_gets_the_signal(tmp_path):
    expected = result(tmp_path / "straight", processes=2)
    process = start(tmp_path / "run", step_s=0.2, processes=2)
    wait_for(process, "STEP 3")
    (one,) = children(process.pid)[:1]
    os.kill(one, signal.SIGTERM)
    code, text = finish(process)
    assert code != 0  # torchrun reports a worker that did not end with 0
    assert "SIGTERM: stopped; 'checkpoint.pth' is saved" in text
    assert result(tmp_path / "run", processes=2, resume=True) == expected


def test_two_processes_killed_at_once_resume_to_the_same_bits(tmp_path):
    expected = result(tmp_path / "straight", processes=2, save_every="4 iterations")
    process = start(tmp_path / "run", step_s=0.1, processes=2, save_every="4 iterations")
    wait_for(process, "STEP 10")
    for worker in children(process.pid):
        os.kill(worker, signal.SIGKILL)
    assert finish(process)[0] != 0
    code, text = finish(start(tmp_path / "run", processes=2, save_every="4 iterations", resume=True))
    assert code == 0, text
    assert "in mid-epoch" in text
    assert text.partition("RESULT ")[2].split()[0] == expected


def children(pid):
    """Return the processes that a launcher has started to train, without their data workers."""
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=True)
    return [int(word) for word in listed.stdout.split()]
