"""A signal to the whole process group, data workers included: the step ends, the run saves and leaves nobody behind."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.patience import PATIENCE_S, eventually, skip_if_ignored
from tests.stories.forking import Forked

SCRIPT = Path(__file__).parent / "group_script.py"
LAUNCHER = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
CODES = {"SIGTERM": 143, "SIGUSR1": 138, "SIGHUP": 129}


ENDLESS = {"max_epoch": 10_000}  # who is slow to send a signal still finds it running


def start(folder, *before, script=SCRIPT, **options):
    """Start the script behind other words, as of a launcher, or fork it."""
    words = [*before, str(script), str(folder), json.dumps(options)]
    shared = {"env": {**os.environ, "OMP_NUM_THREADS": "1"}, "stderr": subprocess.STDOUT, "start_new_session": True}
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True, **shared) if before else Forked(words, **shared)


def wait_for(process, word):
    """Read until a word; a script that hangs is killed."""
    lines, patience = [], threading.Timer(PATIENCE_S, kill, (process,))
    patience.start()
    try:
        for line in process.stdout:
            lines.append(line)
            if word in line:
                return
    finally:
        patience.cancel()
    kill(process)
    process.communicate()
    pytest.fail(f"the script ended, or hung, before it said {word}:\n{''.join(lines)}")


def kill(process):
    for pid in [process.pid, *descendants(process.pid)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def finish(process):
    """Return exit code and output."""
    try:
        text, _ = process.communicate(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        kill(process)
        pytest.fail(f"it hangs:\n{process.communicate()[0]}")
    return process.returncode, text


def descendants(pid):
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = [tuple(map(int, line.split())) for line in listed.splitlines()]
    found = [pid]
    for parent in found:
        found += [child for child, its_parent in parents if its_parent == parent]
    return found[1:]


def is_alive(pid):
    """Tell whether a process runs; one that is dead and not yet collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def stop(process, send, word="STEP 5\n"):
    """Send a signal once a word was said; return code and output, when nobody of the run is left."""
    wait_for(process, word)
    family = descendants(process.pid)
    send()
    code, text = finish(process)
    eventually(lambda: not any(map(is_alive, family)))
    return code, text


def stop_group(folder, name="SIGTERM", word="STEP 5\n", **options):
    process = start(folder, **options, trainer=ENDLESS)
    code, text = stop(process, lambda: os.killpg(process.pid, getattr(signal, name)), word)
    assert code == CODES[name], text
    assert f"{name}: stopped; 'checkpoint.pth' is saved" in text
    assert (folder / "checkpoints" / "checkpoint.pth").exists()


def stop_by_timeout(folder, name, **options):
    process = start(
        folder, "timeout", "-s", name.removeprefix("SIG"), "1000", sys.executable, **options, trainer=ENDLESS
    )
    code, text = stop(process, lambda: process.send_signal(signal.SIGALRM))  # its time is over
    assert code == 124, text  # its own, for a command whose time is over
    assert f"{name}: stopped; 'checkpoint.pth' is saved" in text


def stop_launcher(folder, name, **options):
    process = start(folder, *LAUNCHER, **options, trainer=ENDLESS)
    code, text = stop(process, lambda: process.send_signal(getattr(signal, name)))
    assert code != 0
    assert f"{name}: stopped; 'checkpoint.pth' is saved" in text


WAYS = {"group": stop_group, "timeout": stop_by_timeout, "torchrun": stop_launcher}


@pytest.mark.parametrize(("way", "workers"), [("group", 0), ("group", 2), ("timeout", 2), ("torchrun", 2)])
def test_a_signal_to_the_group_saves_and_leaves_nobody(way, workers, tmp_path):
    WAYS[way](tmp_path, "SIGTERM", workers=workers)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("way", WAYS)
def test_ten_signals_to_the_group_save_each_time_and_leave_nobody(way, workers, tmp_path):
    second = "SIGHUP" if way == "torchrun" else "SIGUSR1"  # torchrun hands on what it handles
    for number in range(10):
        WAYS[way](tmp_path / str(number), ("SIGTERM", second)[number % 2], workers=workers)


@pytest.mark.parametrize(
    "options",
    [
        {"name": "SIGUSR1"},
        pytest.param({"name": "SIGHUP"}, marks=pytest.mark.slow),
        pytest.param({"init": True}, marks=pytest.mark.slow),
        pytest.param({"plain": True}, marks=pytest.mark.slow),
        {"plain": True, "init": True, "persistent": True},
        {"context": "spawn"},
        pytest.param({"context": "forkserver"}, marks=pytest.mark.slow),
        pytest.param({"context": "forkserver", "early": True}, marks=pytest.mark.slow),
        pytest.param({"persistent": True}, marks=pytest.mark.slow),
        {"persistent": True, "early": True},
        {"word": "VALIDATES"},
    ],
    ids=str,
)
def test_whoever_has_started_the_workers_the_run_saves(options, tmp_path):
    skip_if_ignored(getattr(signal, options.get("name", "SIGTERM")))
    stop_group(tmp_path, **{"workers": 2} | options)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_processes_whose_launcher_is_killed_save_and_stop(workers, tmp_path):
    process = start(tmp_path, *LAUNCHER, workers=workers, trainer=ENDLESS)
    code, text = stop(process, lambda: process.send_signal(signal.SIGKILL))
    assert code == -signal.SIGKILL
    assert "the launcher is gone: stopped; 'checkpoint.pth' is saved" in text
    assert (tmp_path / "checkpoints" / "checkpoint.pth").exists()


def test_a_restart_by_the_launcher_does_not_renew_max_time(tmp_path):
    settings = {"max_time": "7 s", "max_epoch": 1000}
    process = start(tmp_path, *LAUNCHER, "--max-restarts=1", step_s=0.02, trainer=settings)
    code, text = finish(process)
    assert code == 1
    stops = [int(words.partition("total_steps ")[2].split(")")[0]) for words in text.split("max_time: stopped;")[1:]]
    assert len(stops) == 2, text
    assert stops[1] - stops[0] < stops[0] * 3 / 4, "it stops as soon as the processes agree"


@pytest.mark.parametrize("plain", [False, True])
def test_workers_that_are_stuck_keep_nobody_waiting(plain, tmp_path):
    stop_group(tmp_path, workers=2, stuck=14, plain=plain)


@pytest.mark.slow
def test_a_run_stopped_by_a_signal_to_the_group_resumes_to_the_same_bits(tmp_path):
    code, expected = finish(start(tmp_path / "straight", workers=2, step_s=0))
    assert code == 0, expected
    stop_group(tmp_path / "run", workers=2, word="STEP 250\n", step_s=0.02)
    code, text = finish(start(tmp_path / "run", workers=2, step_s=0, trainer={"resume": True}))
    assert code == 0, text
    assert "STEP 240\n" not in text
    assert text.partition("RESULT ")[2] == expected.partition("RESULT ")[2]


def test_a_run_under_nohup_outlives_its_terminal(tmp_path):
    process = start(tmp_path, "nohup", sys.executable, workers=1, trainer={"max_epoch": 1})
    wait_for(process, "STEP 5\n")
    os.killpg(process.pid, signal.SIGHUP)
    code, text = finish(process)
    assert code == 0, text
    assert "RESULT" in text


def test_an_interrupt_that_was_ignored_from_the_start_stays_ignored(tmp_path):
    words = ["sh", "-c", 'trap "" INT; exec "$0" "$@"', sys.executable]
    process = start(tmp_path, *words, workers=1, trainer={"max_epoch": 1})
    wait_for(process, "STEP 5\n")
    process.send_signal(signal.SIGINT)
    code, text = finish(process)
    assert code == 0, text
