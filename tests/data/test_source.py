"""Loaders that the engine did not make: their position is their own, or found again by reading."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from tests.data.test_dataloader import Noisy, Stay, batches, equal
from vision3d_engine.data.source import Source, describe_changes


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
    assert "by reading and skipping" in Source(make(workers)).note


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
    source = Source(Stateful())
    stream = source.batches(1, 1)
    for _ in range(4):
        next(stream)
    state = source.state_dict()
    resumed = Source(Stateful())
    resumed.load_state_dict(state)
    assert [(place, int(batch["x"])) for place, batch in resumed.batches(1, 1, start=4)] == [((1, 5), 5), ((1, 6), 6)]
    assert "by its own state_dict" in source.note


def test_rounds_go_on_from_a_place_and_begin_anew():
    loader = DataLoader(Noisy(5), 2)
    places = [place for _, (place, _) in zip(range(5), Source(loader).rounds(lambda n: n, 3, 1), strict=False)]
    assert places == [(3, 2), (3, 3), (4, 1), (4, 2), (4, 3)]


def test_changed_data_is_described():
    loader = DataLoader(Noisy(5), 2)
    before = Source(loader).fingerprint(2)
    assert before == {"samples": 5, "batches": None, "global_batch": 4}
    assert describe_changes(before, before | {"samples": 6}) == ["samples was 5, is 6"]
    assert describe_changes({}, before) == []
