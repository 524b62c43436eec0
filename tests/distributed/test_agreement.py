"""Many agreements on one store, each in a thread of its own, as processes of different speed."""

import threading
import time

import pytest
import torch.distributed as dist

from vision3d_engine.distributed.agreement import StoreAgreement

SIZE = 12


@pytest.fixture(autouse=True)
def _store():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def run(name, ask, size=SIZE, ticks=400):
    """Let every process pass its moments at its own speed; return at which of them each fulfilled which wish."""
    agreements = [StoreAgreement(rank, size, name) for rank in range(size)]
    found = [[] for _ in agreements]

    def live(rank):
        agreement = agreements[rank]
        agreement.start()
        for number in range(1, ticks + 1):
            ask(rank, number, agreement)
            if wish := agreement.tick():
                found[rank].append((number, wish))
            time.sleep(0.001 + 0.0002 * rank)
        agreement.stop()

    threads = [threading.Thread(target=live, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a process hangs"
    return found


def test_all_fulfil_a_wish_at_the_same_moment_whoever_has_it():
    def ask(rank, number, agreement):
        if (rank, number) == (3, 20):
            agreement.ask("save")

    first, *others = run("one", ask)
    assert [wish for _, wish in first] == ["save"]
    assert all(found == first for found in others)


def test_wishes_that_come_together_and_one_after_the_other_are_fulfilled_alike():
    def ask(rank, number, agreement):
        if number == 10 + rank:
            agreement.ask("save")
        if (rank, number) == (7, 100):
            agreement.ask("stop SIGTERM")

    first, *others = run("several", ask, ticks=1500)
    assert first[-1][1] == "stop SIGTERM"
    assert all(found == first for found in others)


def test_a_wish_that_comes_after_one_has_ended_is_fulfilled_by_nobody_and_nobody_waits():
    def ask(rank, number, agreement):
        if rank == SIZE - 1 and number == 395:  # the slowest one, when the fastest have ended
            agreement.ask("save")

    began = time.monotonic()
    assert run("late", ask) == [[] for _ in range(SIZE)]
    assert time.monotonic() - began < 10
