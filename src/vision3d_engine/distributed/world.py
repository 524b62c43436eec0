"""Who we are among the processes of a run, and on which device; one process is a world of size 1."""

from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import torch
import torch.distributed as dist

from vision3d_engine.distributed.coordination.agreement import Agreement, StoreAgreement
from vision3d_engine.distributed.coordination.failure_detector import FailureDetector, StoreFailureDetector
from vision3d_engine.distributed.coordination.hold import Hold, StoreHold
from vision3d_engine.distributed.coordination.reductions import NamedSums, Sums
from vision3d_engine.distributed.coordination.transport_errors import exchange
from vision3d_engine.distributed.launch.device import choose_device, find_device
from vision3d_engine.distributed.launch.launcher import find_launch
from vision3d_engine.distributed.launch.process_group import (
    find_local_rank,
    is_distributed,
    open_process_group,
    opened_group,
)

_AGREEMENTS, _DETECTORS, _HOLDS = count(), count(), count()


class World:
    """The processes of a run. This one is alone; every exchange returns at once.

    Attributes:
        rank: number of this process among all; ``is_main`` is rank 0.
        local_rank: number of this process on its machine, which chooses the device.
        size: number of processes.
        device: where models and batches go.
        restarts: how often the launcher has started the processes of this run again after one died.
        launch: a name that all attempts of the launch share; empty when it is not known.
        notes: warnings for people.
        started_at: when the launcher has first started the processes, in ``time.time()``; None when it is not known.
    """

    rank = 0
    size = 1
    restarts = 0
    launch = ""
    notes: Sequence[str] = ()
    started_at: float | None = None

    def __init__(self, device: torch.device, local_rank: int = 0) -> None:
        self.device = device
        self.local_rank = local_rank

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks on the console."""
        return self.rank == 0

    def agreement(self) -> Agreement:
        """Return a way for the processes to act at the same sync point; to be called by all of them."""
        return Agreement()

    def failure_detector(self, heartbeat_s: float, patience_s: float) -> FailureDetector:
        """Return a failure detector for one run; to be called by all processes. See `StoreFailureDetector`."""
        return FailureDetector()

    def hold(self) -> Hold:
        """Return what holds processes until one lets them go; to be called by all of them."""
        return Hold()

    def gather(self, value: Any) -> list[Any]:
        """Return the picklable values of all processes in rank order; waits for them."""
        return [value]

    def named_sums(self) -> Callable[[Sums], Sums]:
        """Return a function that adds up named triples of all processes; to be used by all of them alike."""
        return dict

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """Return the mean of a tensor over all processes, on the device."""
        return value

    def host_mean(self, value: float) -> float:
        """Return the mean of a number over all processes, without a device; waits for them."""
        return value

    def broadcast(self, value: torch.Tensor) -> None:
        """Overwrite a tensor, in place, with that of the main process."""


class ProcessGroupWorld(World):
    """A world of several processes, spoken to through torch's default process group."""

    def __init__(self, device: torch.device, local_rank: int) -> None:
        super().__init__(device, local_rank)
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()
        self._hosts: Any = dist.group.WORLD if dist.get_backend() == "gloo" else None
        self._opened = opened_group()
        if self._opened is not None:
            self.restarts, self.launch, self.notes = self._opened[:3]
            self.started_at = self._opened.started_at

    def agreement(self) -> Agreement:
        """Return a way for the processes to act at the same sync point; to be called by all of them."""
        outlives = self._opened is not None and self._opened.outlives_launcher
        return StoreAgreement(self.rank, self.size, str(next(_AGREEMENTS)), outlives_launcher=outlives)

    def failure_detector(self, heartbeat_s: float, patience_s: float) -> FailureDetector:
        """Return a failure detector for one run; to be called by all processes."""
        times = {"heartbeat_s": heartbeat_s, "patience_s": patience_s}
        is_ours = self._opened is not None
        return StoreFailureDetector(self.rank, self.size, str(next(_DETECTORS)), **times, ends_process=is_ours)

    def hold(self) -> Hold:
        """Return what holds processes until one lets them go; to be called by all of them."""
        return StoreHold(str(next(_HOLDS)))

    def gather(self, value: Any) -> list[Any]:
        """Return the picklable values of all processes in rank order; waits for them.

        Raises:
            ProcessError: when one of them is lost.
        """
        values: list[Any] = [None] * self.size
        with exchange("gathering values"):
            dist.all_gather_object(values, value)
        return values

    def named_sums(self) -> Callable[[Sums], Sums]:
        """Return a function that adds up named triples of all processes; one all-reduce while the names are known."""
        return NamedSums(self._sum, self.gather)

    def _sum(self, value: torch.Tensor) -> torch.Tensor:
        """Return the sum of a tensor over all processes, on the device."""
        total = value.to(self.device, copy=True)
        with exchange("adding up numbers"):
            dist.all_reduce(total)
        return total

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """Return the mean of a tensor over all processes, on the device; one all-reduce."""
        return self._sum(value) / self.size

    def host_mean(self, value: float) -> float:
        """Return the mean of a number over all processes, without a device; one all-reduce between hosts."""
        if self._hosts is None:
            self._hosts = dist.new_group(backend="gloo")
        total = torch.tensor(float(value), dtype=torch.float64)
        with exchange("adding up numbers"):
            dist.all_reduce(total, group=self._hosts)
        return float(total) / self.size

    def broadcast(self, value: torch.Tensor) -> None:
        """Overwrite a tensor, in place, with that of the main process; one broadcast."""
        with exchange("handing out values"):
            dist.broadcast(value, src=0)


def join_world(device: str | None = None, timeout_s: float = 600.0) -> World:
    """Join what started this process: an open process group, a launcher's variables, or nothing.

    Args:
        device: name of the device; None takes the accelerator of this machine, or the CPU.
        timeout_s: how long a process may wait for another.

    Raises:
        ConfigError: when there is no such device here, or the launcher's variables are incomplete.
        ProcessError: when other processes do not come.
    """
    device_type = find_device(device).type
    if not is_distributed() and (launch := find_launch()) is not None:
        open_process_group(launch, device_type, timeout_s)
    local_rank = find_local_rank(timeout_s)
    chosen = choose_device(device, local_rank)
    return ProcessGroupWorld(chosen, local_rank or 0) if is_distributed() else World(chosen, local_rank or 0)
