"""A set that is walked several times in an epoch."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, RandomSampler

from tests.data.test_dealing import Indices, Ranks, Stream, of_epoch
from vision3d_engine import ConfigError, build_dataloader
from vision3d_engine.data.dealing import describe_changes
from vision3d_engine.data.resumable_loader import ResumableLoader

COUNTS = st.integers(1, 20)
LENGTHS = [1 + 7 * index % 41 for index in range(20)]


def made(count, repeat, kind="plain", **options):
    options = {"num_workers": 0, "collate_fn": list, "repeat": repeat, "shuffle": True} | options
    data = Indices(LENGTHS[:count])
    if kind == "points":
        return build_dataloader(data, 5, batch_points=50, **options)
    if kind == "sampler":
        return build_dataloader(data, 3, sampler=RandomSampler(range(count)), **options)
    if kind == "batch_sampler":
        return build_dataloader(data, batch_sampler=BatchSampler(RandomSampler(range(count)), 3, False), **options)
    return build_dataloader(data, 3, **options)


def samples_of(loader, epoch=1):
    return [sample for _, batch in ResumableLoader(loader).batches(epoch, epoch) for sample in batch]


@pytest.mark.parametrize("kind", ["plain", "points", "sampler", "batch_sampler"])
@given(count=COUNTS, repeat=st.integers(1, 4), size=st.integers(1, 4), steps=st.integers(0, 5))
def test_each_pass_of_an_epoch_has_every_sample_once_on_any_number_of_processes(kind, count, repeat, size, steps):
    samples = samples_of(made(count, repeat, kind))
    passes = [samples[start : start + count] for start in range(0, len(samples), count)]
    assert len(passes) == repeat
    assert all(sorted(each) == list(range(count)) for each in passes)
    with pytest.MonkeyPatch.context() as patch:
        whole = Ranks(patch, lambda: made(count, repeat, kind), 1).batches(of_epoch(0, 0))
        ranks = Ranks(patch, lambda: made(count, repeat, kind), size)
        assert len(made(count, repeat, kind).batch_sampler) <= len(whole)
        assert ranks.batches(of_epoch(steps, 0)) == whole[steps * size :]


@pytest.mark.parametrize("kind", ["plain", "points", "sampler", "batch_sampler"])
def test_each_pass_has_an_order_of_its_own_and_the_first_is_that_of_a_set_walked_once(kind):
    samples = samples_of(made(20, 3, kind))
    assert len({tuple(samples[start : start + 20]) for start in (0, 20, 40)}) == 3
    if kind == "plain":
        assert samples[:20] == samples_of(made(20, 1))
    assert len(made(20, 3)) == 20


def test_in_order_it_is_walked_in_order_each_time():
    assert samples_of(made(4, 3, shuffle=False)) == [0, 1, 2, 3] * 3


def test_each_sample_of_each_pass_has_a_seed_of_its_own():
    loader = made(5, 4)
    loader.batch_sampler.sampler.start_at(1, 1)
    assert len({sample.seed for batch in loader.batch_sampler for sample in batch}) == 20


@pytest.mark.parametrize("kind", ["plain", "points", "sampler", "batch_sampler"])
def test_a_resume_with_another_number_of_passes_is_noticed(kind):
    before, now = (ResumableLoader(made(20, repeat, kind)).fingerprint() for repeat in (1, 2))
    assert "repeat was 1, is 2" in describe_changes(before, now)


@pytest.mark.parametrize("repeat", [0, -1, 1.5, True, "2", None])
def test_a_number_of_passes_is_whole_and_at_least_one(repeat):
    with pytest.raises(ConfigError, match=r"repeat is .*: an epoch walks the set so many times, a whole number"):
        made(4, repeat)


def test_what_is_read_as_it_goes_cannot_be_repeated():
    class Unsized:
        def __iter__(self):
            return iter(range(3))

    with pytest.raises(ConfigError, match="Unsized has no __len__"):
        build_dataloader(Indices([1, 2, 3]), sampler=Unsized(), repeat=2)
    with pytest.raises(ConfigError, match="the data set is iterable"):
        build_dataloader(Stream(), repeat=2)
