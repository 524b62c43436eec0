"""Open torch's default process group, also in a store that still holds what a dead attempt has written."""

import atexit
import json
import os
import platform
import time
import uuid
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore

from vision3d_engine.core.errors import ProcessError, shortened
from vision3d_engine.distributed.coordination.store import own_connection
from vision3d_engine.distributed.launch.launcher import Launch, find_launch, stated_local_rank

_STORES: Any = dist  # its stores are public, though type checkers do not see it
_MAX_NAMES = 5
_PAUSE_S = 0.02
# The engine's own error comes first and names who is late; the transport's is for what it cannot see.
_MARGIN_S = 60.0


class OpenedGroup(NamedTuple):
    """What was found out when the engine opened the process group; see `World`."""

    restarts: int
    launch: str
    notes: Sequence[str]
    outlives_launcher: bool
    started_at: float


_OPENED: list[OpenedGroup] = []


def is_distributed() -> bool:
    """Tell whether a process group is open."""
    return dist.is_available() and dist.is_initialized()


def opened_group() -> OpenedGroup | None:
    """Return what was found out when the engine opened this process's group; None if it did not open one."""
    return _OPENED[-1] if _OPENED else None


def find_local_rank(timeout_s: float = 600.0) -> int | None:
    """Return the number of this process on its machine, which is the index of its device.

    The processes of an open group tell each other through its store what their launcher says, or else on which machine
    they are, so all must call this. While no group is open, None means that the launcher does not say.

    Args:
        timeout_s: how long a process may wait for another.

    Raises:
        ProcessError: when others never say where they are.
    """
    if is_distributed():
        rank = dist.get_rank()
        stated = stated_local_rank(rank, dist.get_world_size())
        return local_rank_among(_gathered("place", (platform.node(), stated), timeout_s), rank)
    launch = find_launch()
    return launch.local_rank if launch is not None else stated_local_rank() or 0


def local_rank_among(places: Sequence[Sequence[Any]], rank: int) -> int:
    """Return what the launcher says of a process if it speaks of all; else how many of a lower rank share its machine.

    Args:
        places: machine, and number on it as the launcher says it or None, of all processes in rank order.
        rank: number of this process.
    """
    machines, stated = zip(*places, strict=True)
    return machines[:rank].count(machines[rank]) if None in stated else stated[rank]


def _gathered(name: str, value: Any, timeout_s: float) -> list[Any]:
    """Return the values of all processes in rank order, through the store: before a device is chosen nothing else can.

    Raises:
        ProcessError: when others never come.
    """
    store, size = own_connection("launch"), dist.get_world_size()
    keys = [f"{name}/{rank}" for rank in range(size)]
    store.set(keys[dist.get_rank()], json.dumps(value))
    try:
        store.wait(keys, timedelta(seconds=timeout_s))
    except RuntimeError as error:
        late = [rank for rank, key in enumerate(keys) if not store.check([key])]
        message = f"{len(late)} of {size} processes did not say within {timeout_s:.0f} s where they run: "
        hint = "All of them must make the trainer or tester"
        raise ProcessError(f"{message}{shortened(late, _MAX_NAMES)}. {hint}") from error
    return [json.loads(found) for found in store.multi_get(keys)]


def open_process_group(launch: Launch, device_type: str, timeout_s: float) -> None:
    """Open torch's default group for the rest of the process, so that a tester can follow a trainer; waits for all.

    Args:
        launch: who we are.
        device_type: of the device where tensors that are exchanged lie; it chooses the backend.
        timeout_s: how long a process may wait for another.

    Raises:
        ProcessError: when some never come.
    """
    timeout = timedelta(seconds=timeout_s + _MARGIN_S)
    attempt, started_at, store = _shared_store(launch, timeout)
    backend = {"cuda": "nccl", "xpu": "xccl"}.get(device_type, "gloo")
    dist.init_process_group(backend, store=store, rank=launch.rank, world_size=launch.size, timeout=timeout)
    own = (launch.restarts, platform.node(), sorted(_cores()), torch.get_num_threads())
    found = _gathered("process", own, timeout_s)
    restarts = max(attempt - 1, *(restarts for restarts, *_ in found))
    notes = thread_warnings([process for _, *process in found])
    outlives_launcher = launch.is_store_open and launch.is_on_one_machine
    _OPENED[:] = [OpenedGroup(restarts, launch.name, notes, outlives_launcher, started_at)]
    atexit.register(lambda: dist.destroy_process_group() if is_distributed() else None)


def _shared_store(launch: Launch, timeout: timedelta) -> tuple[int, float, Any]:
    """Return the number of this attempt, from 1, when the first one has started, and the store of its processes.

    Raises:
        ProcessError: when it cannot be opened or reached, or some never come.
    """
    is_host = launch.rank == 0 and not launch.is_store_open
    try:
        store = _STORES.TCPStore(launch.host, launch.port, launch.size, is_host, timeout, multi_tenant=True)
    except RuntimeError as error:
        verb = "open" if is_host else "reach"
        where = f"the store of the processes at {launch.host}:{launch.port} ({str(error).splitlines()[0]})"
        hint = "Look at MASTER_ADDR; for a port that is taken, choose another MASTER_PORT"
        message = f"process {launch.rank} of {launch.size} cannot {verb} {where}. {hint}"
        raise ProcessError(message) from error
    if not launch.is_store_open:
        return 1, time.time(), store
    prefixed = PrefixStore("vision3d_engine/attempts", store)
    attempt = meet(prefixed, launch.rank, launch.size, timeout.total_seconds())
    started_at = float(prefixed.compare_set("started_at", "", str(time.time())))
    return attempt, started_at, PrefixStore(f"vision3d_engine/attempt{attempt}", store)


def meet(store: Any, rank: int, size: int, patience_s: float) -> int:
    """Return the number of this attempt, from 1, agreed on by its processes alone.

    The launcher's store outlives attempts, and the count of restarts differs between its machines, so what is read
    may come from a process that is dead: every process posts a random id, the main one answers ids, and only who is
    alive acknowledges the answer.

    Raises:
        ProcessError: naming the processes that did not come.
    """
    own_id = uuid.uuid4().hex
    store.set(f"id/{rank}", own_id)
    if rank == 0:
        attempt = store.add("number", 1)
        _answer_all(store, attempt, size, patience_s)
        return attempt
    store.wait([f"answer/{own_id}"], timedelta(seconds=patience_s))
    attempt = int(store.get(f"answer/{own_id}"))
    store.set(f"{attempt}/acknowledged/{rank}", "")
    return attempt


def _answer_all(store: Any, attempt: int, size: int, patience_s: float) -> None:
    """Answer the ids of the other processes until all of them have acknowledged."""
    missing, patience = set(range(1, size)), time.monotonic() + patience_s
    while missing:
        for rank in sorted(missing):
            if store.check([f"id/{rank}"]):
                store.set(f"answer/{store.get(f'id/{rank}').decode()}", str(attempt))
            if store.check([f"{attempt}/acknowledged/{rank}"]):
                missing.remove(rank)
        if missing and time.monotonic() > patience:
            late = shortened(sorted(missing), _MAX_NAMES)
            message = f"{len(missing)} of {size} processes did not join within {patience_s:.0f} s: {late}"
            raise ProcessError(f"{message}. Look at their logs, or start with fewer processes")
        time.sleep(_PAUSE_S)


def _cores() -> frozenset[int]:
    """Return the cores that this process may use."""
    return frozenset(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1))


def thread_warnings(processes: Sequence[Sequence[Any]]) -> list[str]:
    """Return a warning for the machine whose processes have most threads for each core that they share, if too many.

    Args:
        processes: machine, cores and number of torch threads of each.
    """
    machines: dict[str, list[Any]] = {}
    for machine, cores, threads in processes:
        machines.setdefault(machine, []).append((cores, threads))
    loads = []
    for machine, members in machines.items():
        cores, threads = zip(*members, strict=True)
        loads.append((sum(threads), len(set[int]().union(*cores)), len(members), machine))
    threads, cores, count, machine = max(loads, key=lambda load: load[0] / load[1])
    if threads <= max(cores, count):
        return []
    note = f"{count} processes on {machine} have {threads} torch threads on {cores} cores and wait for each other"
    return [f"{note}; set OMP_NUM_THREADS={max(cores // count, 1)}"]
