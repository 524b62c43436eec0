"""Batches on their way to the device: order, contents and, on CUDA, streams."""

from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

from vision3d_engine.data.prefetcher import HostTensors, Prefetcher


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


@pytest.fixture
def streams(monkeypatch):
    """A device with streams: ``meta``, which moves at once."""
    streams = Streams()
    monkeypatch.setattr("vision3d_engine.data.prefetcher._ON_STREAMS", ("meta",))
    monkeypatch.setattr("vision3d_engine.data.prefetcher._pinned", lambda leaf: leaf)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)
    monkeypatch.setattr(torch, "get_device_module", lambda device: streams)
    return streams


META = torch.device("meta")


def test_the_next_batch_is_copied_on_a_side_stream_before_the_one_at_hand_is_handed_out(streams):
    found = []
    for place, batch in Prefetcher(META)(batches(3)):
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


class Sparse:
    """Moves itself, like torchsparse's tensors; the allocator cannot be told who uses it."""

    def __init__(self, log, name="sparse"):
        self.log, self.name = log, name

    def to(self, device):
        self.log.append(f"{self.name} moves to {device}")
        return type(self)(self.log, self.name)


class Graph(Sparse):
    """Like PyG's data, which can be recorded."""

    def record_stream(self, stream):
        self.log.append(f"{self.name} is used on {stream.name}")


def test_an_object_that_cannot_be_recorded_is_moved_on_the_stream_that_uses_it(streams):
    log = streams.log
    batch = {"nest": [Sparse(log)], "graph": SimpleNamespace(graph=Graph(log, "graph")), "class": Graph}
    (found,) = [found for _, found in Prefetcher(META)([(0, batch)])]
    moved = ["sparse moves to meta", "graph is used on main"]
    assert log == ["on side", "graph moves to meta", "off side", "main waits for side", *moved]
    assert found["nest"][0] is not batch["nest"][0]
    assert found["class"] is Graph


def test_tensors_that_cannot_be_recorded_are_moved_on_the_stream_that_uses_them(streams, monkeypatch):
    def refuse(tensor, stream):
        assert tensor.layout is torch.strided, "torch raises"
        streams.log.append("recorded")

    monkeypatch.setattr(torch.Tensor, "record_stream", refuse)
    batch = {"sparse": torch.eye(2).to_sparse(), "dense": torch.eye(2)}
    (found,) = [found for _, found in Prefetcher(META)([(0, batch)])]
    assert streams.log == ["on side", "off side", "main waits for side", "recorded"]
    assert found["sparse"].device.type == found["dense"].device.type == "meta"


class Pairs:
    def __init__(self):
        self.index = torch.ones(2)


@pytest.mark.parametrize("look_ahead", [True, False])
def test_what_stays_on_the_host_is_said_once_by_its_path(streams, look_ahead):
    said = []
    host_tensors = HostTensors(said.append)
    stream = [(number, {"x": torch.ones(1), "pairs": Pairs(), "many": [Pairs()]}) for number in range(3)]
    for _ in range(2):
        assert [place for place, _ in Prefetcher(META, look_ahead, host_tensors)(stream)] == [0, 1, 2]
    (message,) = said
    assert message.startswith("batch['pairs'].index, batch['many'][0].index are on the CPU, and the model on meta: ")
    assert "Give the class of the object such a method, or make it a dataclass" in message


def test_nothing_is_said_when_all_has_moved(streams):
    said = []
    assert len(list(Prefetcher(META, host_tensors=HostTensors(said.append))(batches(2)))) == 2
    assert list(Prefetcher(META, host_tensors=HostTensors(said.append))([])) == []
    assert said == []


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


@gpu
@needs_cuda
def test_on_cuda_objects_that_cannot_be_recorded_arrive_whole_while_the_device_is_busy():
    """Memory that was given away too early would hold the numbers of a later batch."""
    device = torch.device("cuda", torch.cuda.current_device())
    work, sums = torch.randn(2000, 2000, device=device), []
    clouds = [[torch.full((1000, 3), float(n)), torch.full((10, 3), float(n))] for n in range(20)]
    stream = [(n, {"packed": pack_sequence(pair), "eye": pair[0].to_sparse()}) for n, pair in enumerate(clouds)]
    for _, batch in Prefetcher(device)(stream):
        work = work @ work / 2000
        sums.append((batch["packed"].data.sum(), batch["eye"].to_dense().sum()))
    assert [(float(a), float(b)) for a, b in sums] == [(3030.0 * n, 3000.0 * n) for n in range(20)]
