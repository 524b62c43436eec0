"""What has started this process - torchrun, SLURM's srun, or nobody - and how it finds the others."""

import os
import platform
import re
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore

from vision3d_engine.core.errors import ProcessError, listed

_STORES: Any = dist  # its stores are public, though type checkers do not see it
_MAX_NAMES = 5
_PAUSE_S = 0.02
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
        restarts: how often the launcher says it has started the processes again.
        name: the same for all attempts of one launch, and for no other launch.
    """

    rank: int
    size: int
    local_rank: int
    host: str
    port: int
    is_store_open: bool = False
    restarts: int = 0
    name: str = ""


@dataclass(frozen=True)
class Opening:
    """What was found out when the process group was opened.

    Attributes:
        restarts: how often the processes of this launch have been started again.
        name: the launch's name.
        notes: warnings for people.
    """

    restarts: int = 0
    name: str = ""
    notes: list[str] = field(default_factory=list)


def find_launch() -> Launch | None:
    """Return what torchrun's or SLURM's variables say, or None for a process that was started alone."""
    return _torchrun() or _slurm()


def find_local_rank() -> int:
    """Return the number of this process on its machine, which is the index of its device."""
    launch = find_launch()
    return launch.local_rank if launch is not None else int(os.environ.get("LOCAL_RANK", "0"))


def slurm_job() -> str | None:
    """Return the number of the SLURM job that this process belongs to, or None."""
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


def open_process_group(launch: Launch, backend: str, timeout_s: float) -> Opening:
    """Open torch's default process group; waits for all processes.

    Args:
        launch: who we are.
        backend: ``"nccl"`` or ``"gloo"``.
        timeout_s: how long an exchange may wait for another process.

    Raises:
        ProcessError: when some never come.
    """
    timeout = timedelta(seconds=timeout_s)
    is_host = launch.rank == 0 and not launch.is_store_open
    store: Any = _STORES.TCPStore(
        launch.host, launch.port, launch.size, is_master=is_host, timeout=timeout, multi_tenant=True
    )
    attempt = 1
    if launch.is_store_open:
        attempt = meet(PrefixStore("vision3d_engine/attempts", store), launch.rank, launch.size, timeout_s)
        store = PrefixStore(f"vision3d_engine/attempt{attempt}", store)
    dist.init_process_group(backend, store=store, rank=launch.rank, world_size=launch.size, timeout=timeout)
    found: list[Any] = [None] * launch.size
    dist.all_gather_object(found, (launch.restarts, platform.node(), _cores(), torch.get_num_threads()))
    restarts = max(attempt - 1, *(restarts for restarts, *_ in found))
    return Opening(restarts, launch.name, crowded([crew for _, *crew in found]))


def meet(store: Any, rank: int, size: int, patience_s: float) -> int:
    """Return the number of this attempt, from 1, agreed on by its processes alone.

    The launcher's store outlives attempts, and the count of restarts differs between its machines, so what is read
    may come from a process that is dead: everybody draws a ticket, the main process answers tickets, and only who is
    alive says thanks for the answer.

    Raises:
        ProcessError: naming the processes that did not come.
    """
    ticket = uuid.uuid4().hex
    store.set(f"ticket/{rank}", ticket)
    if rank == 0:
        attempt = store.add("number", 1)
        _answer_all(store, attempt, size, patience_s)
        return attempt
    store.wait([f"answer/{ticket}"], timedelta(seconds=patience_s))
    attempt = int(store.get(f"answer/{ticket}"))
    store.set(f"{attempt}/thanks/{rank}", "")
    return attempt


def _answer_all(store: Any, attempt: int, size: int, patience_s: float) -> None:
    """Answer the tickets of the other processes until all of them have said thanks."""
    missing, patience = set(range(1, size)), time.monotonic() + patience_s
    while missing:
        for rank in sorted(missing):
            if store.check([f"ticket/{rank}"]):
                store.set(f"answer/{store.get(f'ticket/{rank}').decode()}", str(attempt))
            if store.check([f"{attempt}/thanks/{rank}"]):
                missing.remove(rank)
        if missing and time.monotonic() > patience:
            late = listed(sorted(missing)[:_MAX_NAMES])
            message = f"{len(missing)} of {size} processes did not join within {patience_s:.0f} s: {late}"
            raise ProcessError(f"{message}. Look at their logs, or start with fewer processes")
        time.sleep(_PAUSE_S)


def _cores() -> frozenset[int]:
    """Return the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def crowded(crews: Sequence[Sequence[Any]]) -> list[str]:
    """Return a warning for the machine whose processes have most threads for each core that they share, if too many.

    Args:
        crews: machine, cores and number of torch threads of each process.
    """
    machines: dict[str, list[Any]] = {}
    for machine, cores, threads in crews:
        machines.setdefault(machine, []).append((cores, threads))
    loads = [_load(machine, crew) for machine, crew in machines.items()]
    threads, cores, count, machine = max(loads, key=lambda load: load[0] / load[1])
    if threads <= max(cores, count):
        return []
    note = f"{count} processes on {machine} have {threads} torch threads on {cores} cores and wait for each other"
    return [f"{note}; set OMP_NUM_THREADS={max(cores // count, 1)}"]


def _load(machine: str, crew: Sequence[tuple[frozenset[int], int]]) -> tuple[int, int, int, str]:
    cores = frozenset[int]().union(*(cores for cores, _ in crew))
    return sum(threads for _, threads in crew), len(cores), len(crew), machine
