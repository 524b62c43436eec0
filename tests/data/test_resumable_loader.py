"""Loaders that the engine did not make: their position is their own, or found again by reading."""

from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, IterableDataset

from tests.data.test_dataloader import Noisy, Stay, batches, equal
from vision3d_engine import DataError, build_dataloader
from vision3d_engine.data import sampler as sampler_module
from vision3d_engine.data.dealing import describe_changes
from vision3d_engine.data.endless_stream import StreamPosition
from vision3d_engine.data.resumable_loader import ResumableLoader


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
    left = [(place, int(batch["x"])) for place, batch in resumed.batches(1, 1, start=4)]
    assert left == [((1, 5, 1), 5), ((1, 6, 1), 6)]
    assert "by its own state_dict" in source.note


def test_rounds_go_on_from_a_place_and_begin_anew():
    loader = DataLoader(Noisy(5), 2)
    stream = ResumableLoader(loader).stream(lambda number: number, StreamPosition(3, 1, (3, 1, 2)))
    assert [place for place, _ in islice(stream, 5)] == [(3, 2, 2), (3, 3, 1), (4, 1, 2), (4, 2, 2), (4, 3, 1)]


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
    order = {"order": "in order", "drop_last": False}
    assert before == {"samples": 5, "batches": None, "global_batch": 4, "repeat": 1} | order
    assert describe_changes(before, before | {"samples": 6}) == ["samples was 5, is 6"]
    assert describe_changes({}, before) == []


class Promising:
    """A loader that says another number of batches than it yields."""

    def __init__(self, count, length):
        self.count, self.length = count, length

    def __len__(self):
        return self.length

    def __iter__(self):
        return iter([{"index": i} for i in range(self.count)])


class Groups(Promising):
    """A batch sampler that says another number of batches than it yields."""

    def __iter__(self):
        return iter([[i] for i in range(self.count)])


def grouped(count, length):
    return build_dataloader(Stay(12), num_workers=0, batch_sampler=Groups(count, length))


@pytest.mark.parametrize("make", [Promising, grouped])
@pytest.mark.parametrize("start", [0, 2])
def test_a_loader_that_ends_before_its_length_is_an_error_with_both_numbers(make, start):
    loader = ResumableLoader(make(4, 6), rank=3, name="training loader")
    batches = loader.batches(1, 5, start)
    for _ in range(4 - start):
        next(batches)
    with pytest.raises(DataError, match=r"of process 3 ended after 4 batches in epoch 5, but its len is 6.*IterBased"):
        next(batches)


@pytest.mark.parametrize("make", [Promising, grouped])
def test_a_loader_that_goes_past_its_length_is_cut_there_and_says_so_once(make):
    said = []
    loader = ResumableLoader(make(6, 4), name="training loader", say=lambda *message: said.append(message))
    for epoch in (1, 2):
        assert [place[:2] for place, _ in loader.batches(1, epoch)] == [(epoch, number) for number in (1, 2, 3, 4)]
    ((text, level),) = said
    assert "training loader" in text
    assert "has more batches than its len, 4; they are left out" in text
    assert level == "WARNING"


@given(count=st.integers(1, 9), size=st.integers(1, 4), shift=st.integers(0, 3))
def test_a_share_of_any_epoch_ends_where_its_length_says(count, size, shift):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler_module, "get_world_size", lambda: size)
        for rank in range(size):
            patch.setattr(sampler_module, "get_rank", lambda rank=rank: rank)
            loader = build_dataloader(Stay(count), 1, num_workers=0)
            readable = ResumableLoader(loader, rank=rank, size=size, say=lambda *message: pytest.fail(str(message)))
            found = [int(batch["index"]) for _, batch in readable.batches(1, 1, shift=shift % size)]
            assert found == list(range((rank - shift) % size, count, size))


def test_a_stream_of_batches_that_only_this_process_counts_needs_no_right_length():
    """The way out for lengths that are estimates."""
    loader = ResumableLoader(Promising(2, 5))
    stream = loader.stream(lambda number: number, StreamPosition(1, 0, (1, 0, 1)))
    assert [place for place, _ in islice(stream, 4)] == [(1, 1, 1), (1, 2, 1), (2, 1, 1), (2, 2, 1)]


def test_a_generator_that_is_used_up_says_so_with_the_way_out():
    loader = ResumableLoader(({"index": i} for i in range(3)), name="training loader")
    assert len(list(loader.batches(1, 1))) == 3
    with pytest.raises(
        DataError, match=r"is an iterator, such as a generator, and used up after one pass.*starts anew"
    ):
        list(loader.batches(1, 2))
    stream = ResumableLoader(iter([{"index": 1}])).stream(lambda number: number, StreamPosition(1, 0, (1, 0, 1)))
    next(stream)
    with pytest.raises(DataError, match="used up after one pass"):
        next(stream)


def test_an_iterator_that_starts_anew_is_a_loader_like_any_other():
    class Anew:
        def __iter__(self):
            self.left = 2
            return self

        def __next__(self):
            self.left -= 1
            if self.left < 0:
                raise StopIteration
            return {"index": self.left}

    loader = ResumableLoader(Anew())
    assert [len(list(loader.batches(1, epoch))) for epoch in (1, 2)] == [2, 2]


def test_a_length_that_is_not_implemented_is_not_known():
    class Unsized(Promising):
        def __len__(self):
            raise NotImplementedError

    assert ResumableLoader(Unsized(2, 2)).length is None
