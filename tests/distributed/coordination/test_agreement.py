"""Many agreements on one store, each in a thread of its own, as processes of different speed."""

import threading
import time

import pytest
import torch.distributed as dist

from vision3d_engine.distributed.coordination.agreement import Agreement, StoreAgreement

SIZE = 12


@pytest.fixture(autouse=True)
def _store():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def run(name, act, size=SIZE, sync_points=400):
    """Let every process pass its sync points at its own speed; return at which of them each carried out what."""
    agreements = [StoreAgreement(rank, size, name) for rank in range(size)]
    found = [[] for _ in agreements]

    def live(rank):
        agreement = agreements[rank]
        with agreement.listening():
            for number in range(1, sync_points + 1):
                act(rank, number, agreement)
                if request := agreement.sync_point():
                    found[rank].append((number, request))
                time.sleep(0.001 + 0.0002 * rank)

    threads = [threading.Thread(target=live, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a process hangs"
    return found


def test_a_request_to_stop_is_not_lost_beside_one_to_save_whichever_comes_first():
    for first, second in (("save", "stop SIGTERM"), ("stop SIGTERM", "save")):
        alone = Agreement()
        alone.request(first)
        alone.request(second)
        assert [alone.sync_point() for _ in range(3)] == [first, second, None]


def test_all_carry_out_a_request_at_the_same_sync_point_whoever_makes_it():
    def act(rank, number, agreement):
        if (rank, number) == (3, 20):
            agreement.request("save")

    first, *others = run("one", act)
    assert [request for _, request in first] == ["save"]
    assert all(found == first for found in others)


def test_requests_that_come_together_and_one_after_the_other_are_carried_out_alike():
    def act(rank, number, agreement):
        if number == 10 + rank:
            agreement.request("save")
        if (rank, number) == (7, 100):
            agreement.request("stop SIGTERM")

    first, *others = run("several", act, sync_points=1500)
    assert first[-1][1] == "stop SIGTERM"
    assert all(found == first for found in others)


def test_a_request_that_comes_after_one_has_ended_is_carried_out_by_nobody_and_nobody_waits():
    def act(rank, number, agreement):
        if rank == SIZE - 1 and number == 395:  # the slowest one, when the fastest have ended
            agreement.request("save")

    began = time.monotonic()
    assert run("late", act) == [[] for _ in range(SIZE)]
    assert time.monotonic() - began < 10
