"""Loaders whose batches are functions of seed, epoch and position, whoever loads them."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    RandomSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from vision3d_engine import SampleError, build_dataloader, replay_sample, sample_seed
from vision3d_engine.core.errors import DataError
from vision3d_engine.data import sampler as sampler_module
from vision3d_engine.data.resumable_loader import ResumableLoader
from vision3d_engine.data.sampler import PositionSampler


class Noisy(Dataset):
    """Draws from all three global generators and from one of its own; counts what it loads."""

    def __init__(self, count=23):
        self.count = count
        self.epoch = 0
        self.loaded = []

    def __len__(self):
        return self.count

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __getitem__(self, index):
        self.loaded.append(index)
        own = np.random.default_rng(sample_seed()).normal()
        noise = [float(torch.randn(())), np.random.normal(), random.random(), own]  # noqa: NPY002
        return {"index": index, "noise": torch.tensor(noise), "epoch": self.epoch}


def batches(loader, epoch=1, start=0, seed=5):
    return [batch for _, batch in ResumableLoader(loader).batches(seed + epoch, epoch, start)]


def equal(first, second):
    return len(first) == len(second) and all(
        torch.equal(a[key], b[key]) for a, b in zip(first, second, strict=True) for key in a
    )


@pytest.mark.parametrize("options", [{"num_workers": 2}, {"num_workers": 1, "persistent_workers": True}])
def test_batches_are_the_same_with_any_number_of_workers(options):
    expected = batches(build_dataloader(Noisy(), 4, num_workers=0, shuffle=True))
    loader = build_dataloader(Noisy(), 4, shuffle=True, **options)
    assert equal(batches(loader), expected)
    assert equal(batches(loader, start=3), expected[3:])
    assert equal(batches(loader), expected)  # whatever came in between


def test_the_data_set_hears_of_the_epoch_in_the_worker():
    loader = build_dataloader(Noisy(), 4, num_workers=1, persistent_workers=True)
    for epoch in (1, 2):
        assert {int(batch["epoch"][0]) for batch in batches(loader, epoch)} == {epoch}


def test_a_resume_loads_nothing_that_it_skips():
    dataset = Noisy()
    loader = build_dataloader(dataset, 4, num_workers=0, shuffle=True)
    rest = batches(loader, start=4)
    assert sum(len(batch["index"]) for batch in rest) == len(dataset.loaded) == 23 - 16


def test_no_epoch_has_order_or_numbers_of_another():
    loader = build_dataloader(Noisy(), 23, num_workers=0, shuffle=True)
    (first,), (second,) = batches(loader, 1), batches(loader, 2)
    assert not torch.equal(first["index"], second["index"])
    assert not set(first["noise"].flatten().tolist()) & set(second["noise"].flatten().tolist())


def test_samples_draw_different_numbers():
    (batch,) = batches(build_dataloader(Noisy(100), 100, num_workers=0))
    assert len(batch["noise"].unique()) == 400


def test_a_loop_without_a_trainer_gets_a_new_order_every_time_and_the_same_for_the_same_seed():
    loader = build_dataloader(Noisy(), 23, num_workers=0, shuffle=True)
    orders = []
    for seed in (1, None, 1):
        if seed is not None:
            torch.manual_seed(seed)
        orders.append(next(iter(loader))["index"].tolist())
    assert orders[0] == orders[2] != orders[1]
    assert len(loader) == 1
    assert loader.batch_size == 23
    assert loader.dataset.count == 23


def share(monkeypatch, rank, size, count, batch_size, drop_last=False):
    monkeypatch.setattr(sampler_module, "get_rank", lambda: rank)
    monkeypatch.setattr(sampler_module, "get_world_size", lambda: size)
    sampler = PositionSampler(range(count), batch_size, shuffle=True, drop_last=drop_last)
    sampler.start_at(3, 1)
    tickets = list(sampler)
    assert len(tickets) == len(sampler)
    return [tickets[i : i + batch_size] for i in range(0, len(tickets), batch_size)]


@given(
    count=st.integers(1, 70),
    batch_size=st.integers(1, 9),
    size=st.integers(1, 5),
    drop_last=st.booleans(),
)
def test_processes_share_the_batches_of_one(count, batch_size, size, drop_last):
    with pytest.MonkeyPatch.context() as patch:
        whole = share(patch, 0, 1, count, batch_size, drop_last)
        for rank in range(size):
            assert share(patch, rank, size, count, batch_size, drop_last) == whole[rank::size]


def test_one_process_and_two_with_half_the_batch_see_the_same_global_batches():
    with pytest.MonkeyPatch.context() as patch:
        whole = share(patch, 0, 1, 24, 8)
        halves = [share(patch, rank, 2, 24, 4) for rank in range(2)]
    assert [first + second for first, second in zip(*halves, strict=True)] == whole


def test_the_users_sampler_is_drawn_once_an_epoch_and_resumes():
    def loader():
        weights = torch.arange(1.0, 24.0)
        return build_dataloader(Noisy(), 4, num_workers=0, sampler=WeightedRandomSampler(weights, 30))

    whole = batches(loader())
    assert equal(batches(loader(), start=5), whole[5:])
    assert not equal(batches(loader(), 2), whole)


def of_process(patch, make, rank, size):
    """The batches of indices, and their positions, that one of several processes loads."""
    patch.setattr(sampler_module, "get_rank", lambda: rank)
    patch.setattr(sampler_module, "get_world_size", lambda: size)
    loader = make()
    order = loader.sampler if isinstance(loader.sampler, PositionSampler) else loader.batch_sampler
    order.start_at(3, 1)
    found = [[tuple(ticket[:2]) for ticket in batch] for batch in loader.batch_sampler]
    assert len(found) == len(loader)
    return found


def weighted():
    return build_dataloader(Noisy(), 4, num_workers=0, sampler=WeightedRandomSampler(torch.arange(1.0, 24.0), 30))


def subset():
    return build_dataloader(Noisy(), 3, num_workers=0, sampler=SubsetRandomSampler(range(5, 16)))


def in_chunks():
    chunks = BatchSampler(RandomSampler(range(23)), 5, drop_last=False)
    return build_dataloader(Noisy(), num_workers=0, batch_sampler=chunks)


@pytest.mark.parametrize("make", [weighted, subset, in_chunks])
@pytest.mark.parametrize("size", [2, 3, 4])
def test_processes_share_what_the_users_sampler_draws(make, size):
    with pytest.MonkeyPatch.context() as patch:
        whole = of_process(patch, make, 0, 1)
        for rank in range(size):
            assert of_process(patch, make, rank, size) == whole[rank::size]


@pytest.mark.parametrize(
    ("batches", "expected"), [([[1], [2, 3]], ("batches_per_step", 2)), (None, ("samples_per_step", 10))]
)
def test_what_one_step_of_all_processes_takes_of_a_batch_sampler_must_not_change(batches, expected):
    chosen = batches or BatchSampler(RandomSampler(range(23)), 5, drop_last=False)
    loader = ResumableLoader(build_dataloader(Noisy(), num_workers=0, batch_sampler=chosen), size=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler_module, "get_world_size", lambda: 2)
        assert expected in loader.fingerprint().items()


def test_a_sampler_that_knows_its_process_gives_each_its_own_share():
    def make():
        own = DistributedSampler(range(23), sampler_module.get_world_size(), sampler_module.get_rank(), shuffle=False)
        return build_dataloader(Noisy(), 4, num_workers=0, sampler=own)

    with pytest.MonkeyPatch.context() as patch:
        shares = [of_process(patch, make, rank, 2) for rank in range(2)]
    indices = [[index for batch in share for index, _ in batch] for share in shares]
    assert indices == [list(range(0, 23, 2)), [*range(1, 23, 2), 0]]
    positions = [{position for batch in share for _, position in batch} for share in shares]
    assert not positions[0] & positions[1]


def test_in_a_loop_without_a_trainer_processes_agree_on_each_order():
    def epochs(rank):
        patch.setattr(sampler_module, "get_rank", lambda: rank)
        patch.setattr(sampler_module, "get_world_size", lambda: 2)
        torch.manual_seed(rank)
        loader = build_dataloader(Noisy(), 4, num_workers=0, shuffle=True)
        return [[i for batch in loader for i in batch["index"].tolist()] for _ in range(2)]

    with pytest.MonkeyPatch.context() as patch:
        first, second = epochs(0), epochs(1)
    for a, b in zip(first, second, strict=True):
        assert sorted(a + b) == list(range(23))
    assert first[0] != first[1]


def test_drawing_the_users_sampler_leaves_the_training_generators_alone():
    loader = build_dataloader(Noisy(), 4, num_workers=0, sampler=RandomSampler(range(23)))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    loader.sampler.start_at(1, 1)
    next(iter(loader.sampler))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 1])
def test_single_samples_without_a_batch_begin_where_they_are_told(workers):
    def loader(workers=0):
        return build_dataloader(Noisy(), None, num_workers=workers, shuffle=True, collate_fn=lambda sample: sample)

    whole = batches(loader())
    again = batches(loader(workers), start=20)
    assert [sample["index"] for sample in again] == [sample["index"] for sample in whole[20:]]


def test_the_users_batch_sampler_resumes():
    def loader(workers=0):
        chunks = BatchSampler(RandomSampler(range(23)), 5, drop_last=False)
        return build_dataloader(Noisy(), num_workers=workers, batch_sampler=chunks)

    whole = batches(loader())
    assert [len(batch["index"]) for batch in whole] == [5, 5, 5, 5, 3]
    assert equal(batches(loader(2), start=2), whole[2:])


def test_a_plain_loader_is_taken_over_with_its_options():
    whole = batches(DataLoader(Stay(), 4, shuffle=True, num_workers=0, drop_last=True))
    again = batches(DataLoader(Stay(), 4, shuffle=True, num_workers=2, drop_last=True), start=2)
    assert len(whole) == 5
    assert equal(again, whole[2:])
    assert ResumableLoader(DataLoader(Stay(), 4)).note is None


class Stay(Noisy):
    """Draws without the engine's help."""

    def __getitem__(self, index):
        return {"index": index, "noise": torch.randn(3)}


def test_a_sample_that_fails_is_named_with_the_line_that_loads_it_again():
    class Faulty(Noisy):
        def __getitem__(self, index):
            number = float(torch.rand(()))
            if index == 7:
                message = f"odd number {number}"
                raise ValueError(message)
            return {"index": index}

    for workers in (0, 1):
        with pytest.raises(SampleError, match=r"sample 7 of Faulty raised ValueError: odd number 0\.\d+") as caught:
            batches(build_dataloader(Faulty(), 4, num_workers=workers), epoch=3)
        text = str(caught.value)
        assert "(epoch 3, position 7)" in text
        seed = int(text.partition("seed=")[2].partition(")")[0])
        number = text.partition("odd number ")[2].split()[0]
        with pytest.raises(ValueError, match=f"odd number {number}"):
            replay_sample(Faulty(), 7, epoch=3, seed=seed)


def test_sample_seed_outside_of_a_sample_says_where_it_works():
    with pytest.raises(DataError, match=r"call it in Dataset\.__getitem__"):
        sample_seed()


def test_an_epoch_of_a_thousand_million_samples_begins_anywhere_at_once():
    class Huge(Dataset):
        def __len__(self):
            return 10**9

        def __getitem__(self, index):
            return {"index": index}

    loader = build_dataloader(Huge(), 10, num_workers=0, shuffle=True)
    assert len(loader) == 10**8
    stream = ResumableLoader(loader).batches(1, 1, start=99_999_999)
    (_, batch), *others = list(stream)
    assert len(batch["index"].unique()) == 10
    assert others == []
