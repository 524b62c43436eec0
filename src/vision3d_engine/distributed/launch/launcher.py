"""What the environment says about who has started this process: torchrun, SLURM's srun, or nobody."""

import os
import re
from dataclasses import dataclass

_FIRST_PORT, _PORTS = 20000, 10000  # below the ports that Linux hands out by itself


@dataclass(frozen=True)
class Launch:
    """Who this process is, in the words of its launcher.

    Attributes:
        rank: number of this process among all.
        size: number of processes.
        local_rank: number of this process on its machine.
        host: machine of the store that brings the processes together.
        port: port of that store.
        is_store_open: the launcher holds the store, over all attempts; otherwise the main process opens one.
        is_on_one_machine: so are all processes.
        restarts: how often the launcher says it has started the processes again.
        name: the same for all attempts of one launch, and for no other launch.
    """

    rank: int
    size: int
    local_rank: int
    host: str
    port: int
    is_store_open: bool = False
    is_on_one_machine: bool = False
    restarts: int = 0
    name: str = ""


def find_launch() -> Launch | None:
    """Return what torchrun's or SLURM's variables say, or None for a process that was started alone."""
    return _torchrun() or _slurm()


def find_local_rank() -> int:
    """Return the number of this process on its machine, which is the index of its device."""
    launch = find_launch()
    return launch.local_rank if launch is not None else int(os.environ.get("LOCAL_RANK", "0"))


def slurm_job() -> str | None:
    """Return the number of the SLURM job of this process, or None."""
    return os.environ.get("SLURM_JOB_ID")


def _torchrun() -> Launch | None:
    env = os.environ
    if not {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"} <= env.keys():
        return None
    host, port = env["MASTER_ADDR"], int(env["MASTER_PORT"])
    is_store_open = env.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    name = env.get("TORCHELASTIC_RUN_ID", "")
    return Launch(
        rank=int(env["RANK"]),
        size=int(env["WORLD_SIZE"]),
        local_rank=int(env["LOCAL_RANK"]),
        host=host,
        port=port,
        is_store_open=is_store_open,
        is_on_one_machine=env.get("LOCAL_WORLD_SIZE") == env["WORLD_SIZE"],
        restarts=int(env.get("TORCHELASTIC_RESTART_COUNT", "0")),
        name=f"{name} {host}:{port}" if is_store_open else name,
    )


def _slurm() -> Launch | None:
    """Read what ``srun`` says to each of its tasks; a shell of ``sbatch``, ``salloc`` or ``srun --pty`` is alone."""
    env = os.environ
    size = int(env.get("SLURM_STEP_NUM_TASKS") or env.get("SLURM_NTASKS") or 1)
    if size == 1 or "SLURM_PTY_PORT" in env or not {"SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_ID"} <= env.keys():
        return None
    nodes = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST") or "localhost"
    job, step = int(env.get("SLURM_JOB_ID", "0")), int(env["SLURM_STEP_ID"])
    return Launch(
        rank=int(env["SLURM_PROCID"]),
        size=size,
        local_rank=int(env["SLURM_LOCALID"]),
        host=env.get("MASTER_ADDR") or first_host(nodes),
        port=int(env.get("MASTER_PORT") or _FIRST_PORT + (10 * job + step) % _PORTS),
        name=f"slurm {job}.{step}",
    )


def first_host(nodes: str) -> str:
    """Return the first machine of a SLURM list: ``node[01-03,07],other5`` begins with ``node01``."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first.group() if first else nodes)
