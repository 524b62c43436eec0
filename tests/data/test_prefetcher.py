"""Batches on their way to the device: order, contents and, on CUDA, streams."""

from typing import NamedTuple

import pytest
import torch

from vision3d_engine.data.prefetcher import Prefetcher


class Pair(NamedTuple):
    a: torch.Tensor
    b: str


CPU = torch.device("cpu")
gpu = pytest.mark.gpu
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def batches(count=5):
    for number in range(count):
        nest = [torch.full((3, 2), number), Pair(torch.ones(2), "name"), None]
        yield (1, number), {"x": torch.full((4,), float(number)), "nest": nest, "number": number}


def test_on_the_cpu_batches_pass_untouched_and_nothing_is_taken_early():
    taken = []

    def noted():
        for batch in batches():
            taken.append(batch)
            yield batch

    stream = noted()
    assert Prefetcher(CPU)(stream) is stream
    assert next(stream) is taken[0]
    assert len(taken) == 1


class Streams:
    """Stands in for ``torch.cuda``: writes down what would be queued where."""

    def __init__(self):
        self.log = []
        outer = self

        class Stream:
            def __init__(self, name="side", device=None):
                self.name = name

            def wait_stream(self, other):
                outer.log.append(f"{self.name} waits for {other.name}")

        class on:  # noqa: N801
            def __init__(self, stream):
                self.name = stream.name

            def __enter__(self):
                outer.log.append(f"on {self.name}")

            def __exit__(self, *details):
                outer.log.append(f"off {self.name}")

        self.Stream, self.stream = Stream, on

    def current_stream(self, device):
        return self.Stream("main")


def test_the_next_batch_is_copied_on_a_side_stream_before_the_one_at_hand_is_handed_out(monkeypatch):
    streams = Streams()
    monkeypatch.setattr("vision3d_engine.data.prefetcher._ON_STREAMS", ("meta",))
    monkeypatch.setattr("vision3d_engine.data.prefetcher._pinned", lambda leaf: leaf)
    monkeypatch.setattr("vision3d_engine.data.prefetcher._record", lambda leaf, stream: None)
    monkeypatch.setattr(torch, "get_device_module", lambda device: streams)
    found = []
    for place, batch in Prefetcher(torch.device("meta"))(batches(3)):
        streams.log.append(f"step {place[1]}")
        found.append(batch)
    copy = ["on side", "off side"]
    assert streams.log == [
        *copy,
        *copy,
        "main waits for side",
        "step 0",
        *copy,
        "main waits for side",
        "step 1",
        "main waits for side",
        "step 2",
    ]
    assert [batch["number"] for batch in found] == [0, 1, 2]
    assert found[0]["nest"][0].device.type == "meta"
    assert found[0]["nest"][1].b == "name"


def test_without_looking_ahead_batches_are_moved_one_by_one():
    taken = []

    def noted():
        for batch in batches(3):
            taken.append(batch)
            yield batch

    stream = iter(Prefetcher(torch.device("meta"), look_ahead=False)(noted()))
    _, batch = next(stream)
    assert batch["x"].device.type == "meta"
    assert len(taken) == 1


@gpu
@needs_cuda
def test_on_cuda_batches_arrive_whole_while_the_device_is_busy():
    """Compared with the batches on the host; the device works long enough for a copy to be late."""
    device = torch.device("cuda", torch.cuda.current_device())
    work = torch.randn(2000, 2000, device=device)
    sums = []
    for _, batch in Prefetcher(device)(batches(20)):
        work = work @ work / 2000
        sums.append((batch["x"].sum(), batch["nest"][0].sum()))
    assert [(float(a), int(b)) for a, b in sums] == [(4.0 * n, 6 * n) for n in range(20)]


@gpu
@needs_cuda
def test_on_cuda_prefetching_never_waits_for_the_device():
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _, _batch in Prefetcher(torch.device("cuda"))(batches(5)):
            pass
    finally:
        torch.cuda.set_sync_debug_mode("default")
