"""What is left of the data is dealt to another number of processes."""

from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, Dataset, IterableDataset, RandomSampler

import vision3d_engine.data.sampler as sampler_module
from vision3d_engine import build_dataloader
from vision3d_engine.data.dealing import StepSize
from vision3d_engine.data.endless_stream import StreamPosition
from vision3d_engine.data.resumable_loader import ResumableLoader

SIZES = st.integers(1, 4)
RUNS = st.lists(st.tuples(SIZES, st.integers(0, 7)), min_size=1, max_size=4)
LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=40)


class Indices(Dataset):
    def __init__(self, lengths):
        self.lengths = lengths

    def __len__(self):
        return len(self.lengths)

    def __getitem__(self, index):
        return index


class Stream(IterableDataset):
    def __iter__(self):
        return iter([])


def by_points(lengths):
    return build_dataloader(Indices(lengths), 5, batch_points=50, shuffle=True, num_workers=0, collate_fn=list)


def by_number(lengths):
    return build_dataloader(Indices(lengths), 3, shuffle=True, num_workers=0, collate_fn=list)


def by_own_sampler(lengths):
    chosen = BatchSampler(RandomSampler(range(len(lengths))), 3, drop_last=False)
    return build_dataloader(Indices(lengths), batch_sampler=chosen, num_workers=0, collate_fn=list)


class Ranks:
    """The processes of a run, one after the other in this one; reads a part of the data, and says which batches."""

    def __init__(self, patch, make, size):
        patch.setattr(sampler_module, "get_world_size", lambda: size)
        self._patch, self._make, self.size = patch, make, size

    def batches(self, read):
        """Return the batches that all processes read, in the order of steps and then of ranks."""
        rows = []
        for rank in range(self.size):
            self._patch.setattr(sampler_module, "get_rank", lambda rank=rank: rank)
            rows.append(list(read(ResumableLoader(self._make(), rank=rank, size=self.size))))
        steps = range(max(map(len, rows)))
        return [row[step] for step in steps for row in rows if step < len(row)]

    def step_size(self):
        loader = ResumableLoader(self._make(), size=self.size)
        return StepSize.of(loader.fingerprint(), self.size)


def of_epoch(steps, first, most=None):
    def read(loader):
        own = loader.own_batches(steps, first)
        batches = [batch for _, batch in loader.batches(1, 1, own, first)]
        assert len(batches) == max(loader.steps(first) - steps, 0)
        return batches[:most]

    return read


def of_stream(steps, first, most):
    def read(loader):
        stream = loader.stream(lambda epoch: epoch, StreamPosition(1, steps, (1, 0, 1), first))
        return [next(stream)[1] for _ in range(most)]

    return read


@pytest.mark.parametrize("make", [by_points, by_number, by_own_sampler])
@given(lengths=LENGTHS, runs=RUNS, last=SIZES)
def test_an_epoch_that_goes_on_with_other_processes_has_the_batches_of_one_in_the_same_order(make, lengths, runs, last):
    with pytest.MonkeyPatch.context() as patch:
        alone = Ranks(patch, lambda: make(lengths), 1)
        whole, found, steps, first, size = alone.batches(of_epoch(0, 0)), [], 0, 0, alone.step_size()
        for number, most in runs:
            ranks = Ranks(patch, lambda: make(lengths), number)
            steps, first = size.deal(steps, first, size := ranks.step_size())
            found += ranks.batches(of_epoch(steps, first, most))
            steps += min(most, max(-(-(len(whole) - (steps * number - first)) // number), 0))
        ranks = Ranks(patch, lambda: make(lengths), last)
        steps, first = size.deal(steps, first, ranks.step_size())
        assert found + ranks.batches(of_epoch(steps, first)) == whole
        assert sorted(chain.from_iterable(whole)) == list(range(len(lengths)))


@pytest.mark.parametrize("make", [by_points, by_number, by_own_sampler])
@given(lengths=LENGTHS, runs=RUNS)
def test_an_endless_stream_that_goes_on_with_other_processes_is_that_of_one(make, lengths, runs):
    with pytest.MonkeyPatch.context() as patch:
        alone = Ranks(patch, lambda: make(lengths), 1)
        whole, found, steps, first, size = alone.batches(of_stream(0, 0, 100)), [], 0, 0, alone.step_size()
        for number, most in runs:
            ranks = Ranks(patch, lambda: make(lengths), number)
            steps, first = size.deal(steps, first, size := ranks.step_size())
            found += ranks.batches(of_stream(steps, first, most))
            steps += most
        assert found == whole[: len(found)]


@given(number=SIZES, batch=st.integers(1, 6), steps=st.integers(0, 50))
def test_the_same_size_of_steps_changes_no_count(number, batch, steps):
    size = StepSize("samples_per_step", number, batch, 1)
    for first in range(number if steps else 1):
        assert size.deal(steps, first, size) == (steps, first)
    if batch % 2 == 0:  # twice as many processes with half the batch have made as many steps
        assert size.deal(steps, 0, StepSize("samples_per_step", number * 2, batch // 2, 1)) == (steps, 0)


def test_another_number_of_processes_explains_what_a_step_takes_if_its_batches_are_the_same():
    def of(key, *numbers):
        return StepSize(key, *numbers)

    by_batch = of("batches_per_step", 2, 1, 1)
    assert by_batch.may_become(of("batches_per_step", 1, 1, 1)) == {"batches_per_step"}
    assert by_batch.may_become(of("batches_per_step", 1, 1, 2)) == {"batches_per_step", "grad_acc_steps"}
    assert not by_batch.may_become(of("batches_per_step", 2, 1, 2))
    assert not by_batch.may_become(None)
    plain = of("global_batch", 2, 4, 1)
    assert not plain.may_become(of("global_batch", 1, 4, 1))
    assert plain.may_become(of("global_batch", 1, 4, 2)) == {"global_batch", "grad_acc_steps"}
    assert not plain.may_become(of("global_batch", 1, 8, 2))


def test_it_is_said_what_keeps_the_updates_as_they_were():
    two = StepSize("batches_per_step", 2, 1, 1)
    one, three = two._replace(processes=1), two._replace(processes=3)
    assert "grad_acc_steps=2 makes them what they were" in two.other_updates(one)
    assert "takes 3 batches, one of the run took 2" in two.other_updates(three)
    assert two.other_updates(one._replace(accumulated=2)) is None
