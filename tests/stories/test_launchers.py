"""Real processes that were started without torchrun know how many they are, and each takes a device of its own."""

import os
import socket
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent / "launched_script.py"
LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_", "SLURM_", "OMPI_", "TORCHELASTIC_")


def start(*words, **variables):
    """Start the script with no variable of a launcher but these."""
    left = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHERS)}
    environment = {**left, "OMP_NUM_THREADS": "1", **{name: str(value) for name, value in variables.items()}}
    command = [sys.executable, str(SCRIPT), *map(str, words)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def results(*processes):
    """Return what the processes print, in rank order; on failure their errors are shown."""
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), [error for _, error in outputs]
    lines = [line for output, _ in outputs for line in output.splitlines()]
    return sorted(line.removeprefix("RESULT ") for line in lines if line.startswith("RESULT"))


def free_port():
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def test_processes_that_kubernetes_starts_are_one_run_and_count_themselves_on_each_machine():
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": 2}
    assert results(*(start("env", RANK=rank, **address) for rank in range(2))) == ["0 2 0 cpu", "1 2 1 cpu"]


def test_processes_that_mpirun_starts_are_one_run():
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "OMPI_COMM_WORLD_SIZE": 2}
    places = [{"OMPI_COMM_WORLD_RANK": rank, "OMPI_COMM_WORLD_LOCAL_RANK": rank} for rank in range(2)]
    assert results(*(start("env", **address, **place) for place in places)) == ["0 2 0 cpu", "1 2 1 cpu"]


def test_processes_that_a_script_spawns_take_a_device_each(tmp_path):
    assert results(start("spawn", tmp_path)) == ["0 2 0 cuda:0", "1 2 1 cuda:1"]


def test_processes_that_a_task_of_slurm_spawns_take_a_device_each(tmp_path):
    """The task's own number on the machine, 0, is not that of its children."""
    task = {"SLURM_PROCID": 0, "SLURM_LOCALID": 0, "SLURM_STEP_ID": 0, "SLURM_NTASKS": 2, "LOCAL_RANK": 0}
    found = results(start("spawn", tmp_path, RANK=0, WORLD_SIZE=1, **task))
    assert found == ["0 2 0 cuda:0", "1 2 1 cuda:1"]


def test_processes_in_a_group_of_the_scripts_own_take_a_device_each(tmp_path):
    assert results(*(start("own group", tmp_path, RANK=rank) for rank in range(2))) == ["0 2 0 cuda:0", "1 2 1 cuda:1"]


def test_a_process_that_knows_its_rank_alone_is_no_run_of_its_own():
    process = start("env", RANK=1)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "ConfigError: the environment has RANK=1, but not WORLD_SIZE, MASTER_ADDR, MASTER_PORT" in error
