"""Sums by name over several processes, which are threads here."""

import threading

import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.patience import PATIENCE_S
from vision3d_engine.distributed.coordination.reductions import MainNumbers, NamedSums


class Meeting:
    """Lets threads exchange values, each waiting for all."""

    def __init__(self, size):
        self.barrier = threading.Barrier(size, timeout=PATIENCE_S)
        self.values = [None] * size
        self.reduced = 0

    def gather(self, rank, value):
        self.barrier.wait()
        self.values[rank] = value
        self.barrier.wait()
        return list(self.values)

    def reduce(self, rank, vector):
        self.reduced += rank == 0
        return torch.stack(self.gather(rank, vector)).sum(0)


triples = st.dictionaries(st.sampled_from("abcd"), st.tuples(*[st.integers(1, 9).map(float)] * 3), max_size=4)


@given(st.integers(2, 3).flatmap(lambda size: st.lists(st.lists(triples, min_size=size, max_size=size), max_size=4)))
def test_sums_are_those_over_all_processes_whatever_names_each_has(calls):
    size = len(calls[0]) if calls else 2
    meeting = Meeting(size)
    found = [[] for _ in range(size)]

    def process(rank):
        sums = NamedSums(lambda vector: meeting.reduce(rank, vector), lambda value: meeting.gather(rank, value))
        found[rank] = [sums(call[rank]) for call in calls]

    threads = [threading.Thread(target=process, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, call in enumerate(calls):
        keys = {key for own in call for key in own}
        expected = {key: tuple(sum(own[key][i] for own in call if key in own) for i in range(3)) for key in keys}
        for rank in range(size):
            assert found[rank][number] == expected
            assert list(found[rank][number])[: len(call[rank])] == list(call[rank])


def test_names_are_exchanged_only_while_one_is_new():
    meeting = Meeting(1)
    sums = NamedSums(lambda vector: meeting.reduce(0, vector), lambda value: meeting.gather(0, value))
    for _ in range(5):
        sums({"loss": (1.0, 2.0, 4.0)})
    assert meeting.reduced == 6


def main_numbers(found, warnings):
    return MainNumbers(lambda own: [own, *found], warnings.append)


def test_the_main_process_decides_and_each_difference_is_said_once():
    warnings = []
    numbers = main_numbers([{"a": 1.0, "b": 3.0}, {"a": 1.0, "b": 2.0, "c": 1.0}], warnings)
    for _ in range(2):
        assert numbers({"a": 1.0, "b": 2.0}, "a hook") == {"a": 1.0, "b": 2.0}
    assert [text.partition(":")[0] for text in warnings] == [
        "'b' of a hook differs between the processes (ranks 0, 2",
        "'c' of a hook differs between the processes (ranks 0, 1",
    ]
    assert "it is left out" in warnings[1]


def test_numbers_of_the_main_process_alone_and_nan_everywhere_are_no_difference():
    warnings = []
    numbers = main_numbers([{"nan": float("nan")}], warnings)
    assert numbers({"nan": float("nan"), "mine": 1.0}, "a hook")["mine"] == 1.0
    assert not warnings
