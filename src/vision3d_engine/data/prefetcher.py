"""Batches on their way to the device while the step before them is still running."""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from vision3d_engine.core.tree import map_leaves, to_device

_ON_STREAMS = ("cuda", "xpu")


class Prefetcher:
    """Moves batches to a device, each on a side stream while the step before it runs.

    The next batch is taken from the loader before the one at hand is handed out. Its tensors are pinned if they are
    not yet, copied without waiting, and recorded on the stream that will use them, so that their memory is not given
    away too early (https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-streams). Numbers, text and objects
    without ``to`` stay as they are. On the CPU nothing is done, at no cost.

    Args:
        device: where batches go.
        look_ahead: the next batch may be taken early; not from a loader that saves its own place, which would be one
            ahead.
    """

    def __init__(self, device: torch.device, look_ahead: bool = True) -> None:
        self.device = device
        self.looks_ahead = look_ahead
        self._streams: Any = torch.get_device_module(device) if look_ahead and device.type in _ON_STREAMS else None

    def __call__(self, batches: Iterable[tuple[Any, Any]]) -> Iterable[tuple[Any, Any]]:
        """Return the batches on the device, each still with its place in the data."""
        if self.device.type == "cpu":
            return batches
        if self._streams is None:
            return ((place, to_device(batch, self.device)) for place, batch in batches)
        return self._ahead(batches, self._streams.Stream(device=self.device))

    def _ahead(self, batches: Iterable[tuple[Any, Any]], side: Any) -> Iterator[tuple[Any, Any]]:
        under_way: deque[tuple[Any, Any]] = deque()
        for place, batch in batches:
            under_way.append((place, self._begin(batch, side)))
            if len(under_way) > 1:
                yield self._arrived(under_way.popleft(), side)
        while under_way:
            yield self._arrived(under_way.popleft(), side)

    def _begin(self, batch: Any, side: Any) -> Any:
        """Queue the copies of a batch on the side stream."""
        with self._streams.stream(side):
            return to_device(map_leaves(_pinned, batch), self.device)

    def _arrived(self, item: tuple[Any, Any], side: Any) -> tuple[Any, Any]:
        """Let the step's stream, not the host, wait for the copies."""
        current = self._streams.current_stream(self.device)
        current.wait_stream(side)
        map_leaves(lambda leaf: _record(leaf, current), item[1])
        return item


def _pinned(leaf: Any) -> Any:
    """Return a tensor of the host in memory that the device can copy from by itself."""
    is_plain = isinstance(leaf, torch.Tensor) and leaf.device.type == "cpu" and leaf.layout is torch.strided
    return leaf.pin_memory() if is_plain and not leaf.is_pinned() else leaf


def _record(leaf: Any, stream: Any) -> None:
    """Tell the allocator that a tensor, or an object of tensors such as PyG's ``Data``, is used on a stream."""
    record = getattr(leaf, "record_stream", None)
    if callable(record):
        record(stream)
