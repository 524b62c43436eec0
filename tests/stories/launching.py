"""Starts scripts as several processes without torchrun, which takes seconds more."""

import os
import socket
import subprocess
import sys

import torch

from tests.patience import PATIENCE_S

LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_", "SLURM_", "OMPI_", "TORCHELASTIC_")


def start(script, *words, **variables):
    """Start a script with no variable of a launcher but these."""
    left = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHERS)}
    environment = {**left, "OMP_NUM_THREADS": "1", **{name: str(value) for name, value in variables.items()}}
    command = [sys.executable, str(script), *map(str, words)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def start_ranks(script, *words, size=2, **variables):
    """Start a script so many times, as processes of one run."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": size}
    return [start(script, *words, RANK=rank, **address, **variables) for rank in range(size)]


def free_port():
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def outputs_of(processes):
    """Return exit code, output and errors of each process, in rank order."""
    outputs = [process.communicate(timeout=PATIENCE_S) for process in processes]
    return [(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]


def results_of(processes):
    """Return what the processes print as results, sorted; they must end well."""
    outputs = outputs_of(processes)
    assert [code for code, _, _ in outputs] == [0] * len(processes), [error for _, _, error in outputs]
    lines = [line for _, output, _ in outputs for line in output.splitlines()]
    return sorted(line.removeprefix("RESULT ") for line in lines if line.startswith("RESULT"))


def saved_steps(folder):
    """Return the training steps that a run has saved in ``checkpoint.pth``, 0 without one."""
    path = folder / "checkpoints" / "checkpoint.pth"
    return torch.load(path, weights_only=True)["metadata"]["total_steps"] if path.exists() else 0
