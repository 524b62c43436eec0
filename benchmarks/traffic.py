"""Counts what one process says to the others: collectives of its own thread, and requests to the store."""

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

REQUESTS = ("add", "append", "check", "compare_set", "delete_key", "get", "multi_get", "multi_set", "set", "wait")


class Traffic(TorchDispatchMode):
    """Counts operators of ``torch.distributed``, also those that DistributedDataParallel calls from C++.

    It sees what passes through torch's dispatcher in the thread that entered it: every collective of a process group,
    so also those that make up ``all_gather_object`` and barriers, but not point-to-point messages of other libraries.

    Attributes:
        collectives: number by operator.
        bytes_sent: bytes of the tensors that this process hands in.
        bytes_received: bytes of the tensors that it gets from others, where an operator gathers.
    """

    def __init__(self) -> None:
        super().__init__()
        self.collectives: Counter[str] = Counter()
        self.bytes_sent = self.bytes_received = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        namespace, _, name = function.name().partition("::")
        if namespace == "c10d":
            self._note(name.partition(".")[0], args)
        return function(*args, **(kwargs or {}))

    def _note(self, name: str, args: Any) -> None:
        self.collectives[name] += 1
        gathers = "allgather" in name
        self.bytes_sent += size_of(args[1] if gathers else args[0])
        self.bytes_received += size_of(args[0]) if gathers else 0

    @property
    def total(self) -> int:
        return sum(self.collectives.values())

    def copy(self) -> dict[str, int]:
        return {"collectives": self.total, "sent": self.bytes_sent, "received": self.bytes_received}


def size_of(value: Any) -> int:
    """Bytes of the tensors in nested lists."""
    if isinstance(value, torch.Tensor):
        return value.nbytes
    return sum(map(size_of, value)) if isinstance(value, list | tuple) else 0


@contextlib.contextmanager
def store_requests() -> Iterator[Counter[str]]:
    """Count requests to any store by thread: ``main`` or the thread's name."""
    found: Counter[str] = Counter()
    originals = {name: getattr(dist.Store, name) for name in REQUESTS}

    def counting(original: Any) -> Any:
        def request(*args: Any, **kwargs: Any) -> Any:
            thread = threading.current_thread()
            found["main" if thread is threading.main_thread() else thread.name] += 1
            return original(*args, **kwargs)

        return request

    for name, original in originals.items():
        setattr(dist.Store, name, counting(original))
    try:
        yield found
    finally:
        for name, original in originals.items():
            setattr(dist.Store, name, original)
