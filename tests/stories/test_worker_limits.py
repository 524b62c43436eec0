"""Data workers that meet a limit of the system: the error says which, with its figures, and what to do."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.patience import PATIENCE_S
from tests.stories.launching import outputs_of, start

SCRIPT = Path(__file__).parent / "limits_script.py"
SMALL = "mount -t tmpfs -o size=8m tmpfs /dev/shm"
IN_SMALL = ["unshare", "--mount", "sh", "-c"]


def test_too_many_open_files_are_told_with_the_limit_in_force(tmp_path):
    ((code, _, error),) = outputs_of([start(SCRIPT, tmp_path, "files")])
    assert code == 1
    assert "WorkerError" in error
    assert "limit in force: " in error
    assert "ulimit -n 65536" in error
    assert 'set_sharing_strategy("file_system")' in error


def test_too_many_open_files_in_a_worker_are_told_and_do_not_hang_the_run(tmp_path):
    ((code, _, error),) = outputs_of([start(SCRIPT, tmp_path, "worker")])
    assert code == 1
    assert "WorkerError" in error
    assert "limit in force: 64" in error


def test_a_limit_that_the_process_may_raise_itself_is_raised(tmp_path):
    ((code, _, error),) = outputs_of([start(SCRIPT, tmp_path, "soft")])
    assert code == 0, error


def test_a_worker_that_ends_by_a_bus_error_tells_of_shared_memory_with_its_size(tmp_path):
    ((code, _, error),) = outputs_of([start(SCRIPT, tmp_path, "bus")])
    assert code == 1
    assert "ended by SIGBUS" in error
    assert "/dev/shm has " in error
    assert "--shm-size=8g, or --ipc=host" in error


def test_a_full_shared_memory_is_told_with_its_size(tmp_path):
    try:
        can_mount = subprocess.run([*IN_SMALL, SMALL], capture_output=True, timeout=PATIENCE_S, check=False).returncode
    except FileNotFoundError:
        can_mount = 1
    if can_mount != 0:
        pytest.skip("this user may not mount a small /dev/shm")
    command = [*IN_SMALL, f"{SMALL} && exec {sys.executable} {SCRIPT} {tmp_path} memory"]
    done = subprocess.run(command, capture_output=True, timeout=PATIENCE_S, text=True, check=False)
    assert done.returncode == 1
    assert "/dev/shm has 8 MiB" in done.stderr
    assert "prefetch_factor" in done.stderr
