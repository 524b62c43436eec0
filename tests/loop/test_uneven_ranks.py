"""Who makes which step with which batch when processes have different numbers of them, against a plain simulation."""

from itertools import islice

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from vision3d_engine import DataError
from vision3d_engine.loop.uneven_ranks import UnevenRanks

lengths_of = st.lists(st.integers(1, 7), min_size=1, max_size=5)
modes = st.sampled_from(["join", "drop", "cycle"])


def simulated(lengths, rank, mode):
    """Return the batch number of every step of one process, and whether it only fills in: by going step by step."""
    steps, batch = [], 0
    while len(steps) < (min(lengths) if mode == "drop" else max(lengths)):
        if batch < lengths[rank]:
            batch += 1
            steps.append((batch, False))
        elif mode == "cycle":
            batch = 1
            steps.append((batch, False))
        else:
            steps.append((lengths[rank], True))
    return steps


def own_batches(length):
    """Return a reader of a process's batches, numbered from 1, and the list of where it was asked to begin."""
    asked = []

    def read(first):
        asked.append(first)
        return iter(range(first + 1, length + 1))

    return read, asked


@hypothesis_settings(max_examples=400)
@given(lengths_of, modes, st.data())
def test_any_process_walks_the_batches_of_a_plain_simulation_from_any_step_on(lengths, mode, data):
    rank = data.draw(st.integers(0, len(lengths) - 1))
    expected = simulated(lengths, rank, mode)
    done = data.draw(st.integers(0, len(expected)))
    turns = UnevenRanks(lengths, rank, mode)
    read, _ = own_batches(lengths[rank])
    assert turns.length == len(expected)
    found = list(turns.batches(read(done), done, read))
    fills = [turns.is_joining(iteration) for iteration in range(done + 1, turns.length + 1)]
    assert list(zip(found, fills, strict=True)) == expected[done:]


@given(lengths_of, modes)
def test_the_mean_weight_of_a_step_is_the_share_of_processes_that_do_not_fill_in(lengths, mode):
    ranks = range(len(lengths))
    for iteration, roles in enumerate(zip(*(simulated(lengths, rank, mode) for rank in ranks), strict=True), start=1):
        share = sum(not fills for _, fills in roles) / len(lengths)
        assert all(UnevenRanks(lengths, rank, mode).mean_weight(iteration) == share for rank in ranks)


@pytest.mark.parametrize("mode", ["join", "drop", "cycle"])
@pytest.mark.parametrize("lengths", [[4], [4, 4, 4]])
def test_processes_with_equally_many_batches_get_them_as_they_are(lengths, mode):
    turns, batches = UnevenRanks(lengths, 0, mode), iter(())
    assert turns.batches(batches, 0, None) is batches
    assert turns.length == 4
    assert not turns.is_joining(4)
    assert turns.mean_weight(4) == 1


def test_a_single_process_may_not_know_its_length():
    turns, batches = UnevenRanks([None], 0, "join"), iter((1, 2))
    assert turns.length is None
    assert turns.batches(batches, 0, None) is batches
    assert turns.mean_weight(10**6) == 1
    assert not turns.is_joining(10**6)


def test_who_has_most_batches_is_read_to_the_end_so_that_a_longer_loader_is_noticed():
    batches = iter(())
    assert UnevenRanks([3, 2], 0, "join").batches(batches, 0, None) is batches


@pytest.mark.parametrize("mode", ["join", "drop", "cycle"])
def test_batches_are_neither_read_early_nor_more_often_than_needed(mode):
    read, asked = own_batches(2)
    steps = iter(UnevenRanks([2, 5], 0, mode).batches(read(0), 0, read))
    list(islice(steps, 2))
    assert asked == [0]
    list(steps)
    assert asked == {"join": [0], "drop": [0], "cycle": [0, 0, 0]}[mode]


def test_a_resume_in_the_midst_of_joining_in_reads_the_last_batch_alone():
    read, asked = own_batches(3)
    assert list(UnevenRanks([3, 6], 0, "join").batches(read(4), 4, read)) == [3, 3]
    assert asked == [4, 2]


def test_a_resume_in_the_midst_of_a_later_round_goes_on_there():
    read, asked = own_batches(3)
    assert list(UnevenRanks([3, 9], 0, "cycle").batches(read(4), 4, read)) == [2, 3, 1, 2, 3]
    assert asked == [4, 1, 0]


@pytest.mark.parametrize("mode", ["join", "drop", "cycle"])
def test_more_steps_behind_us_than_the_epoch_has_leave_none(mode):
    """As after a resume with changed data."""
    read, _ = own_batches(2)
    assert list(UnevenRanks([2, 4], 0, mode).batches(read(9), 9, read)) == []


def test_several_processes_that_do_not_know_their_length_are_refused():
    with pytest.raises(DataError, match=r"3 processes do not all know their length \(4, None, 4\)"):
        UnevenRanks([4, None, 4], 0, "join")


def test_a_process_without_a_batch_is_named():
    with pytest.raises(DataError, match=r"process 2 of 3 has no training batch; use fewer processes"):
        UnevenRanks([4, 1, 0], 0, "join")
