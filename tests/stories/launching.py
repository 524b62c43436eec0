"""Starts scripts as one process or several, without torchrun, which takes seconds more."""

import os
import socket
import subprocess
import sys

import torch

from tests.patience import PATIENCE_S
from tests.stories.forking import Forked

LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_", "SLURM_", "OMPI_", "TORCHELASTIC_")


def start(script, *words, **variables):
    """Fork a script with no variable of a launcher but these."""
    return Forked([script, *words], env=environment_of(variables))


def start_anew(script, *words, **variables):
    """Start a script by the interpreter, which imports all there is anew."""
    command = [sys.executable, str(script), *map(str, words)]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=environment_of(variables), text=True, **streams)


def start_unheard(script, *words, **variables):
    """Fork a script whose output nobody reads."""
    return Forked([script, *words], env=environment_of(variables), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def environment_of(variables):
    left = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHERS)}
    return {**left, "OMP_NUM_THREADS": "1", **{name: str(value) for name, value in variables.items()}}


def start_ranks(script, *words, size=2, start=start, **variables):
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
