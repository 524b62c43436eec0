"""A process fails, dies or hangs: all end soon and say why, and the launcher's restart ends with the same weights."""

import json
import os
import re
import signal
import subprocess
import threading
from pathlib import Path

import pytest

from tests.patience import PATIENCE_S, eventually
from tests.stories.forking import Forked
from tests.stories.launching import outputs_of, results_of, saved_steps, start_ranks

SCRIPTS = Path(__file__).parent
LAUNCHER = ["-m", "torch.distributed.run", "--standalone"]


def start(words, **environment):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return Forked(words, env=environment, stderr=subprocess.STDOUT, start_new_session=True)


def finish(process):
    """Return exit code and output; whatever hangs is killed."""
    try:
        text, _ = process.communicate(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        text, _ = process.communicate()
        pytest.fail(f"it hangs:\n{text}")
    return process.returncode, text


def fail(folder, place, fault, processes=2, **settings):
    """Return what a world says in which process 1 fails; all processes end before any limit that they wait for."""
    script = [SCRIPTS / "failing_script.py", folder, place, fault, json.dumps(settings)]
    code, text = finish(start([*LAUNCHER, f"--nproc-per-node={processes}", *script]))
    assert code != 0
    return text


def run_ranks(folder, fault, **settings):
    """Return the exit codes of two processes without a launcher, of which 1 has a fault, and what both say."""
    words = (folder, "train_step", fault, json.dumps(settings))
    outputs = outputs_of(start_ranks(SCRIPTS / "failing_script.py", *words))
    return [code for code, *_ in outputs], "".join(output + error for _, output, error in outputs)


@pytest.fixture(scope="module")
def raised(tmp_path_factory):
    """The folder of a world in which process 1 raises, and what it says; each is run once."""
    known = {}

    def found(place, processes):
        if (place, processes) not in known:
            folder = tmp_path_factory.mktemp(place)
            known[place, processes] = folder, fail(folder, place, "raise", processes)
        return known[place, processes]

    return found


@pytest.mark.parametrize(
    ("place", "processes", "position"),
    [
        ("train_step", 2, "train epoch 1, iteration 3"),
        pytest.param("train_step", 3, "train epoch 1, iteration 3", marks=pytest.mark.slow),
        pytest.param("val_step", 2, "val epoch 1, iteration 3", marks=pytest.mark.slow),
        pytest.param("test_step", 2, "test iteration 3", marks=pytest.mark.slow),
    ],
)
def test_an_exception_of_one_process_ends_all_with_its_message(place, processes, position, raised):
    folder, text = raised(place, processes)
    message = rf"process 1 on \S+ failed in {position} \(failing_script.py:\d+ in fail_in\): ValueError: a bad cloud"
    said = re.findall(rf"ERROR \| {message}", text)
    assert len(said) == processes - 1, "each of the others says it once"
    assert "ERROR | stopped by ValueError: a bad cloud" in text
    assert "Connection closed by peer" not in text
    (main_log,) = folder.glob("logs/t*.log")
    assert re.search(message, main_log.read_text())
    assert 'raise ValueError("a bad cloud")' in (folder / "logs" / "rank1.log").read_text()
    if processes == 3:
        assert re.search(message, (folder / "logs" / "rank2.log").read_text())
    assert re.search(r"Root Cause.*rank +: 1 .*ValueError: a bad cloud", text, re.DOTALL), "torchrun names it too"


@pytest.mark.slow
def test_a_sample_that_raises_is_named_on_all_processes(tmp_path):
    text = fail(tmp_path, "dataset", "raise")
    found = re.search(r"process 1 on \S+ failed in .*: SampleError: (.*) \(epoch 1, position 3\)", text)
    assert found, text
    assert found[1] == "sample 3 of Rows raised ValueError: a bad cloud"


@pytest.mark.parametrize("processes", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_a_process_that_is_killed_is_named(processes, tmp_path):
    text = fail(tmp_path, "train_step", "kill", processes)
    assert len(re.findall(r"ERROR \| process 1 on \S+ is gone: its last sign of life was in", text)) == processes - 1
    assert "process 0 on" not in text


@pytest.mark.slow
def test_a_process_that_leaves_is_named(tmp_path):
    text = fail(tmp_path, "train_step", "leave")
    assert "ERROR | process 1 has ended its run before the others" in text


@pytest.mark.slow
def test_a_process_that_does_not_come_is_named_with_the_line_where_it_is(tmp_path):
    text = fail(tmp_path, "train_step", "sleep", collective_timeout_s=8)
    assert re.search(
        r"ERROR \| process 0 on \S+ has waited \d+ s in train epoch 1, iteration 3 \(update.py:\d+ in backward\) "
        r"for process 1 on \S+, which is in train epoch 1, iteration 3 \(failing_script.py:\d+ in fail_in\) "
        r"\(trainer.collective_timeout_s: 8\)",
        text,
    )
    assert "The run ends when that time is over" in text.partition("ERROR |")[0], "with a warning before"


def test_a_process_whose_code_holds_the_lock_of_python_is_warned_of_and_not_gone(tmp_path):
    codes, text = run_ranks(tmp_path, "lock", heartbeat_s=3, max_epoch=1, collective_timeout_s=300)
    assert codes == [0, 0], text
    warning = (
        r"WARNING \| process 1 on \S+ gives no sign of life \(trainer.heartbeat_s: 3\), but runs and is waited for"
    )
    assert len(re.findall(warning, text)) == 1, text
    assert "ERROR" not in text


def test_the_last_line_of_each_process_is_the_cause(raised):
    _, text = raised("train_step", 2)
    lines = [line for line in text.splitlines() if "Error: " in line and line.startswith("[rank")]
    (own,) = [line for line in lines if line.startswith("[rank1]")]
    assert own == "[rank1]: ValueError: a bad cloud"
    assert re.search(r"ProcessError: process 1 on \S+ failed in .*: ValueError: a bad cloud$", text, re.MULTILINE)
    assert "--resume" not in text
    shown = [line for line in text.splitlines() if line.startswith("[rank1]:   File")]
    assert len(shown) == 4
    assert shown[-1].endswith("in fail_in")


def test_in_debug_mode_the_process_whose_loss_is_not_finite_is_named_on_all(tmp_path):
    codes, text = run_ranks(tmp_path, "nan", debug=True)
    assert all(codes), codes
    message = "NonFiniteError: epoch 1, iteration 3: the loss is nan"
    assert f"ERROR | stopped by {message}" in text
    assert re.search(rf"ERROR \| process 1 on \S+ failed in train epoch 1, iteration 3 .*: {message}", text)


def test_of_a_deadlock_all_processes_write_where_they_are_before_they_end(tmp_path):
    codes, text = run_ranks(tmp_path, "sleep", hang_after="4 s", on_hang="stop")
    assert all(codes), codes
    assert "ERROR | no step for 4 s (trainer.hang_after) in train epoch 1, iteration 3" in text
    waiting, sleeping = (next(tmp_path.glob(f"debug/hang-*-rank{rank}.txt")).read_text() for rank in range(2))
    assert re.search(r'failing_script.py", line \d+ in main', waiting)  # in the exchange, wherever that is at the time
    assert re.search(r'failing_script.py", line \d+ in fail_in', sleeping)


def test_in_a_group_of_somebody_else_the_error_can_be_caught_and_the_group_stays_open(tmp_path, monkeypatch):
    monkeypatch.setenv("FOREIGN", "1")
    codes, text = run_ranks(tmp_path, "raise")
    assert codes == [0, 0], text
    assert "CAUGHT ValueError GROUP IS OPEN" in text
    assert "CAUGHT ProcessError GROUP IS OPEN" in text


SETTINGS = {"save_every": "4 iterations"}


def train(folder, *flags, gates=(), **settings):
    settings = json.dumps(SETTINGS | settings)
    words = [*LAUNCHER, *flags, SCRIPTS / "noisy_script.py", folder, "epoch", 0.0, settings]
    return start(words, GATES=",".join(gates))


def digest(text):
    return text.partition("RESULT ")[2].split()[0]


def wait_for(process, word):
    """Return the output until a word; a script that hangs is killed."""
    lines, patience = [], threading.Timer(PATIENCE_S, os.killpg, (process.pid, signal.SIGKILL))
    patience.start()
    try:
        for line in process.stdout:
            lines.append(line)
            if word in line:
                return "".join(lines)
    finally:
        patience.cancel()
    pytest.fail(f"the script ended, or hung, before it said {word}:\n{''.join(lines)}")


def children(pid):
    """Return the processes that a launcher has started to train."""
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=True)
    return [int(word) for word in listed.stdout.split()]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Weights of a run on two processes that nobody disturbs."""
    words = (tmp_path_factory.mktemp("straight") / "run", "epoch", 0.0, json.dumps(SETTINGS))
    (found,) = results_of(start_ranks(SCRIPTS / "noisy_script.py", *words))
    return found


@pytest.mark.parametrize("restarts", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_launcher_that_starts_the_processes_again_ends_with_the_same_weights(restarts, straight, tmp_path):
    deaths = [("train 2.5", 8), ("train 3.4", 12)][:restarts]  # where a process dies, and what is saved by then
    process, text = train(tmp_path / "run", "--nproc-per-node=2", "--max-restarts=2", gates=dict(deaths)), ""
    for gate, saved in deaths:
        text += wait_for(process, "AT GATE")
        eventually(lambda saved=saved: saved_steps(tmp_path / "run") == saved)
        os.kill(children(process.pid)[-1], signal.SIGKILL)
        (tmp_path / f"run.{gate}").touch()
    code, rest = finish(process)
    text += rest
    assert code == 0, text
    assert f"the launcher has started the processes again ({restarts})" in text
    assert "in mid-epoch" in text
    assert digest(text) == straight


@pytest.mark.slow
def test_a_restart_does_not_go_on_with_a_run_that_was_refused(tmp_path):
    code, text = finish(train(tmp_path / "run", "--nproc-per-node=2", max_epoch=1))
    assert code == 0, text
    code, text = finish(train(tmp_path / "run", "--nproc-per-node=2", "--max-restarts=1"))
    assert code != 0
    assert text.count("ERROR | stopped by FolderInUseError") == 2
    assert "STEP" not in text


def test_tasks_of_slurm_find_each_other(straight, tmp_path):
    words = [SCRIPTS / "noisy_script.py", tmp_path / "run", "epoch", 0.0, json.dumps(SETTINGS)]
    job = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2"}
    job["SLURM_STEP_NODELIST"] = "localhost"
    tasks = [start(words, **job, SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank)) for rank in range(2)]
    found = [finish(task) for task in tasks]
    assert [code for code, _ in found] == [0, 0], found
    assert digest(found[0][1]) == straight
    assert "RESULT" not in found[1][1]
