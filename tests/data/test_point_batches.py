"""Batches by number of points."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset

import vision3d_engine.data.sampler as sampler_module
from tests.toys import ToyEpochTrainer, settings
from vision3d_engine import ConfigError, DataError, build_dataloader, collate_packed

LENGTHS = st.lists(st.one_of(st.integers(0, 9), st.integers(0, 50)), min_size=1, max_size=60)
BOUNDED = {"lengths": LENGTHS, "bound": st.integers(50, 90), "most": st.integers(2, 9), "shuffle": st.booleans()}


class Clouds(Dataset):
    """Cloud i has so many points, all of them i."""

    def __init__(self, lengths):
        self.lengths = self.sizes = lengths

    def __len__(self):
        return len(self.sizes)

    def __getitem__(self, index):
        return {"points": torch.full((self.sizes[index], 3), float(index)), "index": index}


def loader(lengths, bound, most, shuffle=True, **options):
    options |= {"collate_fn": collate_packed, "num_workers": 0, "shuffle": shuffle}
    return build_dataloader(Clouds(lengths), most, batch_points=bound, **options)


def epoch(made, number=1, start=0, shift=0):
    """The samples of each batch that this process loads of an epoch."""
    made.batch_sampler.start_at(number, number, start, shift)
    return [[sample.index for sample in batch] for batch in made.batch_sampler]


@given(**BOUNDED)
def test_no_batch_has_more_points_or_samples_than_its_bounds_and_each_sample_comes_once(lengths, bound, most, shuffle):
    made = loader(lengths, bound, most, shuffle)
    for number in (1, 2):
        batches = epoch(made, number)
        assert len(batches) == len(made)
        assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
        assert all(sum(lengths[index] for index in batch) <= bound for batch in batches)
        assert all(1 <= len(batch) <= most for batch in batches)


@given(**BOUNDED)
def test_on_any_number_of_processes_the_batches_are_those_of_one_also_from_the_middle_on(lengths, bound, most, shuffle):
    whole = epoch(loader(lengths, bound, most, shuffle))
    with pytest.MonkeyPatch.context() as patch:
        for size in (1, 2, 3, 4):
            patch.setattr(sampler_module, "get_world_size", lambda size=size: size)
            for rank in range(size):
                patch.setattr(sampler_module, "get_rank", lambda rank=rank: rank)
                made = loader(lengths, bound, most, shuffle)
                assert len(made) == len(whole[rank::size])
                assert epoch(made) == whole[rank::size]
                assert epoch(made, start=1) == whole[rank + size :: size]


@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=200), bound=st.integers(100, 400))
def test_shuffled_batches_are_filled(lengths, bound):
    """No sample has more than half a batch, so batches are at least half full, but for rounding up."""
    assert len(loader(lengths, bound, len(lengths) + 2)) <= 2 * sum(lengths) // bound + 1


def test_batches_are_drawn_anew_for_every_epoch_and_those_of_validation_are_in_order():
    lengths = list(range(1, 101))
    first, again, second = (epoch(loader(lengths, 500, 20), number) for number in (1, 1, 2))
    assert first == again
    assert {frozenset(batch) for batch in first}.isdisjoint(map(frozenset, second))
    in_order = epoch(loader(lengths, 500, 20, shuffle=False))
    assert [index for batch in in_order for index in batch] == list(range(100))


def test_a_few_outliers_do_not_make_the_other_batches_small():
    lengths = [10] * 400 + [490, 480]
    assert len(loader(lengths, 500, 100)) == 4000 // 500 + 2


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_larger_sample_is_alone_in_its_batch_and_said_once(shuffle):
    lengths = [10, 101, 10, 250, 10]
    with pytest.warns(UserWarning, match=r"2 samples have more than batch_points=100 points, the largest 250") as said:
        batches = epoch(loader(lengths, 100, 5, shuffle))
    assert len(said) == 1
    assert [1] in batches
    assert [3] in batches


@pytest.mark.parametrize("kind", [np.array, torch.tensor, tuple, lambda lengths: lambda: lengths])
def test_lengths_may_be_an_array_a_tensor_a_tuple_or_a_method(kind):
    data = Clouds([3, 4, 5, 6])
    data.lengths = kind([3, 4, 5, 6])
    batches = build_dataloader(data, 4, batch_points=9, num_workers=0).batch_sampler
    assert [[sample.index for sample in batch] for batch in batches] == [[0, 1], [2], [3]]


def test_a_loader_collates_them():
    batches = list(loader([3, 4, 5, 6], 9, 4, shuffle=False))
    assert [batch["lengths"] for batch in batches] == [[3, 4], [5], [6]]
    assert batches[0]["points"].shape == (7, 3)


@pytest.mark.parametrize("shuffle", [False, True])
def test_an_empty_data_set_has_no_batch(shuffle):
    assert len(loader([], 9, 4, shuffle)) == len(epoch(loader([], 9, 4, shuffle))) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "batch_size=1: batch_size is the most samples of a batch and must be at least 2"),
        ({"batch_size": 4, "batch_points": 0}, "batch_points at least 1"),
        ({"batch_size": 4, "drop_last": True}, "does not go with drop_last. Leave out one"),
        ({"batch_size": 4, "sampler": [1]}, "does not go with sampler"),
        ({"batch_size": 4, "batch_sampler": [[1]]}, "does not go with batch_sampler"),
    ],
)
def test_options_that_do_not_go_together_are_an_error(options, message):
    with pytest.raises(ConfigError, match=message):
        build_dataloader(Clouds([1, 2]), **{"batch_points": 9, **options})


class Stream(IterableDataset):
    def __iter__(self):
        return iter([])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Clouds([1.5, 2]), "Clouds.lengths must have 2 whole numbers"),
        (Clouds([-1, 2]), "Clouds.lengths must have 2 whole numbers"),
        (Stream(), "Stream is iterable"),
    ],
)
def test_lengths_that_are_no_whole_numbers_one_a_sample_are_an_error(data, message):
    with pytest.raises(DataError, match=message):
        build_dataloader(data, 4, batch_points=9)


class Misstated(Dataset):
    """Has other points than it states, so that it is told whether it was measured."""

    def __init__(self, lengths):
        self.lengths = lengths

    def __len__(self):
        return len(self.lengths)

    def __getitem__(self, index):
        return {"points": torch.zeros(50, 3)}


def test_subsets_and_concatenated_sets_have_the_lengths_of_what_they_are_of():
    joined = ConcatDataset([Misstated([1, 2, 3]), Subset(Misstated([9, 5, 4]), [2, 0])])
    loader = build_dataloader(Subset(joined, [4, 0, 3, 1]), 4, batch_points=9, num_workers=0)
    assert [[sample.index for sample in batch] for batch in loader.batch_sampler] == [[0], [1, 2, 3]]


def test_a_method_that_returns_the_length_of_one_sample_is_an_error_that_says_so():
    class OfOne(Misstated):
        def __init__(self):
            pass

        def __len__(self):
            return 3

        def lengths(self, index):
            return 4

    with pytest.raises(DataError, match=r"OfOne\.lengths is a method that asks for more than self .*returns all"):
        build_dataloader(OfOne(), 4, batch_points=9)


class Wrong(Clouds):
    """Says that all samples have a point."""

    def __init__(self, sizes):
        super().__init__(sizes)
        self.lengths = [1] * len(sizes)


class Still(ToyEpochTrainer):
    def train_step(self, epoch, iteration, data_dict):
        return {}, {"loss": sum(each.sum() for each in self.model.parameters())}


@pytest.fixture
def exceeded(tmp_path, capsys):
    """Return a function that trains, and returns what was said of the bound."""

    def train(data, **options):
        options = {"num_workers": 0, "collate_fn": collate_packed, "batch_points": 9} | options
        Still(settings(tmp_path), build_dataloader(data, 4, **options)).run()
        return [line for line in capsys.readouterr().err.splitlines() if "batch_points=9" in line]

    return train


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_with_more_points_than_its_bound_is_said_once_with_its_largest_sample(workers, exceeded):
    (told,) = exceeded(Wrong([2, 3, 8, 2] * 3), num_workers=workers)
    assert "a batch has 15 points, more than batch_points=9. Sample 2 has 8 points in it, and a length of 1" in told


@pytest.mark.parametrize(
    ("data", "options"),
    [
        (Wrong([2, 3, 2, 2]), {}),  # wrong lengths, and nothing exceeded
        (Clouds([2, 3, 8, 2]), {}),
        (Wrong([2, 3, 8, 2]), {"points_of": lambda _sample: 1}),  # what it counts is the script's
    ],
)
def test_nothing_is_said_of_batches_within_their_bound_or_of_points_that_a_function_counts(data, options, exceeded):
    assert not exceeded(data, **options)


@pytest.mark.filterwarnings("ignore:1 samples have more")
def test_nothing_is_said_of_a_large_sample_that_is_alone(exceeded):
    assert not exceeded(Clouds([2, 30, 8, 2]))
