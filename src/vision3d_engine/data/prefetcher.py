"""Batches on their way to the device while the step before them is still running."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from vision3d_engine.core.errors import shortened
from vision3d_engine.core.tree import map_leaves, move, tensors_elsewhere, to_device

_ON_STREAMS = ("cuda", "xpu")


class HostTensors:
    """Says once a run which tensors of a batch stay on the host.

    Args:
        say: takes the message.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._said: set[str] = set()

    def look(self, batch: Any, device: torch.device) -> None:
        """Name the tensors of a batch that are not on the device, unless they were named before."""
        new = [path for path in tensors_elsewhere(batch, device) if path not in self._said]
        self._said.update(new)
        if new:
            self._say(
                f"{shortened([f'batch{path}' for path in new])} {'is' if len(new) == 1 else 'are'} on the CPU, and the "
                f"model on {device}: the engine moves tensors, objects with a method to(device), and what dicts, "
                "lists, tuples and dataclasses hold. Give the class of the object such a method, or make it a dataclass"
            )


class Prefetcher:
    """Moves batches to a device, each on a side stream while the step before it runs.

    The next batch is taken from the loader before the one at hand is handed out. Its tensors are pinned if they are
    not yet, copied without waiting, and recorded on the stream that will use them, so that their memory is not given
    away too early (https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-streams). Objects that cannot be recorded
    are moved on that stream itself, when the batch is handed out. Numbers, text and objects without ``to`` stay as they
    are. On the CPU nothing is done, at no cost.

    Args:
        device: where batches go.
        look_ahead: the next batch may be taken early; not from a loader that saves its own place, which would be one
            ahead.
        host_tensors: is shown the first batch.
    """

    def __init__(self, device: torch.device, look_ahead: bool = True, host_tensors: HostTensors | None = None) -> None:
        self.device = device
        self.looks_ahead = look_ahead
        self._host_tensors = host_tensors
        self._streams: Any = torch.get_device_module(device) if look_ahead and device.type in _ON_STREAMS else None

    def __call__(self, batches: Iterable[tuple[Any, Any]]) -> Iterable[tuple[Any, Any]]:
        """Return the batches on the device, each still with its place in the data."""
        if self.device.type == "cpu":
            return batches
        if self._streams is None:
            return self._shown((place, to_device(batch, self.device)) for place, batch in batches)
        return self._shown(self._ahead(batches, self._streams.Stream(device=self.device)))

    def _shown(self, arriving: Iterator[tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
        """Show the first batch to who looks for tensors that are left on the host."""
        for place, batch in arriving:
            if self._host_tensors is not None:
                self._host_tensors.look(batch, self.device)
            yield place, batch
            break
        yield from arriving

    def _ahead(self, batches: Iterable[tuple[Any, Any]], side: Any) -> Iterator[tuple[Any, Any]]:
        under_way: deque[tuple[Any, Any]] = deque()
        for place, batch in batches:
            under_way.append((place, self._begin(batch, side)))
            if len(under_way) > 1:
                yield self._arrived(*under_way.popleft(), side)
        while under_way:
            yield self._arrived(*under_way.popleft(), side)

    def _begin(self, batch: Any, side: Any) -> Any:
        """Queue the copies of a batch on the side stream."""
        with self._streams.stream(side):
            return map_leaves(lambda leaf: move(_pinned(leaf), self.device) if _is_recorded(leaf) else leaf, batch)

    def _arrived(self, place: Any, batch: Any, side: Any) -> tuple[Any, Any]:
        """Let the step's stream, not the host, wait for the copies; move on it what could not be recorded."""
        current = self._streams.current_stream(self.device)
        current.wait_stream(side)
        return place, map_leaves(lambda leaf: self._settled(leaf, current), batch)

    def _settled(self, leaf: Any, current: Any) -> Any:
        if not _is_recorded(leaf):
            return move(leaf, self.device)
        leaf.record_stream(current)
        return leaf


def _pinned(leaf: Any) -> Any:
    """Return a tensor of the host in memory that the device can copy from by itself."""
    is_plain = isinstance(leaf, torch.Tensor) and leaf.device.type == "cpu"
    return leaf.pin_memory() if is_plain and not leaf.is_pinned() else leaf


def _is_recorded(leaf: Any) -> bool:
    """Tell whether the allocator can be told which stream uses a leaf; sparse and nested tensors refuse that."""
    if isinstance(leaf, torch.Tensor):
        return leaf.layout is torch.strided
    return callable(getattr(leaf, "record_stream", None)) and not isinstance(leaf, type)
