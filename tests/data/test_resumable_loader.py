"""Loaders that the engine did not make: their position is their own, or found again by reading."""

from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, IterableDataset

from tests.data.test_dataloader import Noisy, Stay, batches, equal
from vision3d_engine import build_dataloader
from vision3d_engine.data import sampler as sampler_module
from vision3d_engine.data.endless_stream import StreamPosition
from vision3d_engine.data.resumable_loader import ResumableLoader, describe_changes


class Stream(IterableDataset):
    def __iter__(self):
        for index in range(20):
            yield {"index": index, "noise": torch.from_numpy(np.random.normal(size=2))}  # noqa: NPY002


class OwnLoader(DataLoader):
    """A subclass may do anything, so it is not taken over."""


def _own(workers):
    return OwnLoader(Stay(), 4, shuffle=True, num_workers=workers)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("make", [lambda n: DataLoader(Stream(), 4, num_workers=n), _own])
def test_what_is_read_and_skipped_goes_on_with_the_same_batches(make, workers):
    whole = batches(make(workers))
    torch.randn(3)
    assert equal(batches(make(workers), start=2), whole[2:])
    assert "by reading and skipping" in ResumableLoader(make(workers)).note


class Stateful:
    """A loader that saves its own position, as torchdata's StatefulDataLoader does."""

    def __init__(self):
        self.next = 0

    def __iter__(self):
        while self.next < 6:
            self.next += 1
            yield {"x": torch.tensor([self.next])}
        self.next = 0

    def __len__(self):
        return 6

    def state_dict(self):
        return {"next": self.next}

    def load_state_dict(self, state):
        self.next = state["next"]


def test_a_loader_with_a_state_goes_on_by_it():
    source = ResumableLoader(Stateful())
    stream = source.batches(1, 1)
    for _ in range(4):
        next(stream)
    state = source.state_dict()
    resumed = ResumableLoader(Stateful())
    resumed.load_state_dict(state)
    assert [(place, int(batch["x"])) for place, batch in resumed.batches(1, 1, start=4)] == [((1, 5), 5), ((1, 6), 6)]
    assert "by its own state_dict" in source.note


def test_rounds_go_on_from_a_place_and_begin_anew():
    loader = DataLoader(Noisy(5), 2)
    stream = ResumableLoader(loader).stream(lambda number: number, StreamPosition(3, 1, (3, 1)))
    assert [place for place, _ in islice(stream, 5)] == [(3, 2), (3, 3), (4, 1), (4, 2), (4, 3)]


@given(count=st.integers(1, 9), size=st.integers(1, 4), taken=st.integers(0, 12))
def test_the_stream_of_several_processes_is_the_stream_of_one(count, size, taken):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler_module, "get_world_size", lambda: 1)
        patch.setattr(sampler_module, "get_rank", lambda: 0)
        loader = build_dataloader(Stay(count), 2, num_workers=0, shuffle=True)
        whole = taken_from(loader, 0, 0, 1, (taken + 6) * size)
        patch.setattr(sampler_module, "get_world_size", lambda: size)
        for rank in range(size):
            patch.setattr(sampler_module, "get_rank", lambda rank=rank: rank)
            assert taken_from(loader, taken, rank, size, 6) == whole[taken * size + rank :: size][:6]


def taken_from(loader, taken, rank, size, count):
    readable = ResumableLoader(loader, rank=rank, size=size)
    stream = readable.stream(lambda number: number, StreamPosition(1, taken, (1, 0)))
    return [(place[0], batch["index"].tolist()) for place, batch in islice(stream, count)]


def test_changed_data_is_described():
    loader = DataLoader(Noisy(5), 2)
    before = ResumableLoader(loader, size=2).fingerprint()
    assert before == {"samples": 5, "batches": None, "global_batch": 4}
    assert describe_changes(before, before | {"samples": 6}) == ["samples was 5, is 6"]
    assert describe_changes({}, before) == []
