"""Who we are among the processes of a run, and on which device; one process is a world of size 1."""

import atexit
from collections.abc import Callable, Sequence
from functools import wraps
from itertools import count
from typing import Any

import torch
import torch.distributed as dist

from vision3d_engine.core.errors import ConfigError
from vision3d_engine.core.tree import map_leaves
from vision3d_engine.distributed.agreement import Agreement, StoreAgreement
from vision3d_engine.distributed.launch import Launch, Opening, find_launch, find_local_rank, open_process_group
from vision3d_engine.distributed.sums import KeyedSums, Sums
from vision3d_engine.distributed.watch import ProcessWatch, Watch, exchange

_AGREEMENTS, _WATCHES = count(), count()
# What was found out when the engine opened the process group of this process; of one that others opened, nothing.
_OPENED: list[Opening] = []
# The engine's own notice comes first and names who is late; the transport's is for what it cannot see.
_MARGIN_S = 60.0


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
    """

    rank = 0
    size = 1
    restarts = 0
    launch = ""
    notes: Sequence[str] = ()

    def __init__(self, device: torch.device, local_rank: int = 0) -> None:
        self.device = device
        self.local_rank = local_rank

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks on the console."""
        return self.rank == 0

    def agreement(self) -> Agreement:
        """Return a way for the processes to act at the same moment; to be called by all of them."""
        return Agreement()

    def watch(self, heartbeat_s: float, patience_s: float) -> Watch:
        """Return a watch over the processes for one run; to be called by all of them.

        Args:
            heartbeat_s: how long a process may give no sign of life.
            patience_s: how long a process may wait for another.
        """
        return Watch()

    def failure_detector(self, heartbeat_s, patience_s):
        return self.watch(heartbeat_s, patience_s)

    def named_sums(self):
        return self.keyed_sums()

    def gather(self, value: Any) -> list[Any]:
        """Return the picklable values of all processes in rank order; waits for them."""
        return [value]

    def keyed_sums(self) -> Callable[[Sums], Sums]:
        """Return a function that adds up named triples of all processes; to be used by all of them alike."""
        return dict

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """Return the mean of a tensor over all processes, on the device."""
        return value

    def broadcast(self, value: torch.Tensor) -> None:
        """Overwrite a tensor, in place, with that of the main process."""


class ProcessGroupWorld(World):
    """A world of several processes, spoken to through torch's default process group."""

    def __init__(self, device: torch.device, local_rank: int) -> None:
        super().__init__(device, local_rank)
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()
        for opening in _OPENED:
            self.restarts, self.launch, self.notes = opening.restarts, opening.name, opening.notes

    def agreement(self) -> Agreement:
        """Return a way for the processes to act at the same moment; to be called by all of them."""
        return StoreAgreement(self.rank, self.size, str(next(_AGREEMENTS)))

    def watch(self, heartbeat_s: float, patience_s: float) -> Watch:
        """Return a watch over the processes for one run; to be called by all of them."""
        return ProcessWatch(
            self.rank,
            self.size,
            str(next(_WATCHES)),
            heartbeat_s=heartbeat_s,
            patience_s=patience_s,
            ends_process=bool(_OPENED),
        )

    def gather(self, value: Any) -> list[Any]:
        """Return the picklable values of all processes in rank order; waits for them.

        Raises:
            ProcessError: when one of them is lost.
        """
        values: list[Any] = [None] * self.size
        with exchange("gathering values"):
            dist.all_gather_object(values, value)
        return values

    def keyed_sums(self) -> Callable[[Sums], Sums]:
        """Return a function that adds up named triples of all processes; one all-reduce while the names are known."""
        return KeyedSums(self._sum, self.gather)

    def _sum(self, vector: torch.Tensor) -> torch.Tensor:
        """Return the sum of a vector of the host over all processes."""
        total = vector.to(self.device)
        with exchange("adding up numbers"):
            dist.all_reduce(total)
        return total

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """Return the mean of a tensor over all processes, on the device; one all-reduce."""
        total = value.clone()
        with exchange("averaging"):
            dist.all_reduce(total)
        return total / self.size

    def broadcast(self, value: torch.Tensor) -> None:
        """Overwrite a tensor, in place, with that of the main process; one broadcast."""
        with exchange("handing out values"):
            dist.broadcast(value, src=0)


def join_world(device: str | None = None, timeout_s: float = 600.0) -> World:
    """Join what started this process: an existing process group, torchrun's or SLURM's variables, or nothing.

    Args:
        device: name of the device; None takes the accelerator of this machine, or the CPU.
        timeout_s: how long a process may wait for another.

    Raises:
        ConfigError: when there is no such device here.
        ProcessError: when other processes do not come.
    """
    chosen = _choose_device(device, find_local_rank())
    if not is_distributed() and (launch := find_launch()) is not None:
        _open_for_good(launch, chosen, timeout_s)
    return ProcessGroupWorld(chosen, find_local_rank()) if is_distributed() else World(chosen, find_local_rank())


def _open_for_good(launch: Launch, device: torch.device, timeout_s: float) -> None:
    """Open the default group for the rest of the process, so that a tester can follow a trainer."""
    backend = {"cuda": "nccl", "xpu": "xccl"}.get(device.type, "gloo")
    _OPENED[:] = [open_process_group(launch, backend, timeout_s + _MARGIN_S)]
    atexit.register(_close_process_group)


def _close_process_group() -> None:
    if is_distributed():
        dist.destroy_process_group()


def _choose_device(name: str | None, local_rank: int) -> torch.device:
    """Return the named device, or this process's accelerator, or the CPU; and make it the current one."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    try:
        device = torch.device(name) if name else accelerator or torch.device("cpu")
    except RuntimeError as error:
        message = f"device '{name}' is not a device that torch knows; use cpu, cuda, cuda:1, mps, ..."
        raise ConfigError(message) from error
    _check_device(device, accelerator)
    if device.type in {"cuda", "xpu"}:
        own = local_rank if torch.accelerator.device_count() > 1 else 0  # a launcher may show each process its own only
        device = torch.device(device.type, own if device.index is None else device.index)
        torch.get_device_module(device).set_device(device)
    return device


def _check_device(device: torch.device, accelerator: torch.device | None) -> None:
    """Refuse a device that this machine does not have."""
    if device.type in {"cpu", "meta"}:
        return
    count = torch.accelerator.device_count() if accelerator is not None else 0
    if accelerator is None or accelerator.type != device.type or (device.index or 0) >= count:
        here = f"{count} x {accelerator.type}" if accelerator is not None else "the CPU only"
        message = f"device '{device}' is not on this machine, which has {here}; leave --device out or use --device cpu"
        raise ConfigError(message)


# ------------------------------------------------------------------------------------------ functions for scripts


def current_device() -> torch.device:
    """Return this process's accelerator, or the CPU when the machine has none."""
    return _choose_device(None, find_local_rank())


def setup_distributed(device: str | None = None) -> World:
    """Join the process group that torchrun asks for; kept for scripts that do so without a trainer."""
    return join_world(device)


def is_distributed() -> bool:
    """Tell whether a process group is open."""
    return dist.is_available() and dist.is_initialized()


def get_world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if is_distributed() else 1


def get_rank() -> int:
    """Return the number of this process among all."""
    return dist.get_rank() if is_distributed() else 0


def get_local_rank() -> int:
    """Return the number of this process on its machine, which is the index of its device."""
    return find_local_rank() if is_distributed() else 0


def is_master() -> bool:
    """Tell whether this is the process that writes files."""
    return get_rank() == 0


def master_only(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make a function do nothing, and return None, on all processes but the main one."""

    @wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs) if is_master() else None

    return wrapper


def all_reduce_tensor(tensor: torch.Tensor, world_size: int | None = None) -> torch.Tensor:
    """Return the mean of a tensor over all processes."""
    if not is_distributed():
        return tensor
    total = tensor.clone()
    dist.all_reduce(total)
    return total / (world_size or get_world_size())


def all_reduce_tensors(nest: Any, world_size: int | None = None) -> Any:
    """Return a nest with every tensor replaced by its mean over all processes; one all-reduce a tensor."""
    return map_leaves(lambda x: all_reduce_tensor(x, world_size) if isinstance(x, torch.Tensor) else x, nest)
