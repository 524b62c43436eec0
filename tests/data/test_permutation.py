"""The order of an epoch is a permutation that is a function of seed and position alone."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vision3d_engine.data import permutation as module
from vision3d_engine.data.permutation import Permutation


@given(count=st.integers(1, 3000), seed=st.integers(0, 2**63 - 1))
def test_every_sample_comes_once(count, seed):
    assert sorted(Permutation(count, seed).at(range(count))) == list(range(count))


@given(count=st.integers(1, 3000), seed=st.integers(0, 2**63 - 1))
def test_every_sample_comes_once_when_each_position_is_computed_by_itself(count, seed):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_MAX_SORTED", 0)
        permutation = Permutation(count, seed)
        assert sorted(permutation.at(range(count))) == list(range(count))


def test_a_part_of_a_large_order_is_that_part_of_the_whole():
    whole, count = Permutation(200_003, 5), 200_003
    indices = whole.at(range(count))
    assert sorted(indices) == list(range(count))
    assert Permutation(count, 5).at(range(150_000, 150_010)) == indices[150_000:150_010]
    assert Permutation(count, 5).at(range(7, 700, 13)) == indices[7:700:13]
    assert Permutation(count, 6).at(range(100)) != indices[:100]


@pytest.mark.parametrize("count", [1000, 100_000])
def test_positions_and_samples_are_not_related(count):
    """Rank correlation and the spread over tenths of an order are those of chance (5 sigma)."""
    indices = np.array(Permutation(count, 3).at(range(count)))
    correlation = np.corrcoef(indices, np.arange(count))[0, 1]
    assert abs(correlation) < 5 / np.sqrt(count)
    tenths = np.histogram2d(indices, np.arange(count), bins=10)[0]
    assert np.abs(tenths - count / 100).max() < 5 * np.sqrt(count / 100)


def test_an_epoch_of_a_thousand_million_samples_needs_no_memory():
    tracemalloc.start()
    found = Permutation(10**9, 1).at(range(999_999_000, 10**9))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000
    assert len(set(found)) == 1000
    assert max(found) < 10**9


def test_the_order_is_the_same_in_every_version():
    """Written down once: a checkpoint of today must find its place in the order of tomorrow."""
    assert Permutation(10, 42).at(range(10)) == PUBLISHED
    assert Permutation(10**6, 42).at(range(4)) == PUBLISHED_LARGE


PUBLISHED = [7, 8, 0, 9, 4, 2, 5, 1, 6, 3]
PUBLISHED_LARGE = [626669, 824675, 881074, 587085]
