"""Many agreements on one store, each in a thread of its own, as processes of different speed."""

import threading
import time
from itertools import count

import pytest
import torch.distributed as dist

from tests.patience import PATIENCE_S, eventually
from vision3d_engine import ProcessError
from vision3d_engine.distributed.coordination.agreement import Agreement, StoreAgreement

SIZE = 12


@pytest.fixture(autouse=True)
def _store():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def warnings():
    return []


def run(name, act, is_over, ended=None):
    """Let every process pass its sync points at its own speed; return at which of them each carried out what.

    It ends when ``is_over(number, found)``, with the number of its sync point and what it has carried out; then the
    event of its rank in ``ended`` is set.
    """
    agreements = [StoreAgreement(rank, SIZE, name) for rank in range(SIZE)]
    found = [[] for _ in agreements]

    def live(rank):
        agreement = agreements[rank]
        with agreement.listening(print):
            for number in count(1):
                act(rank, number, agreement)
                if request := agreement.sync_point():
                    found[rank].append((number, request))
                if is_over(number, found[rank]):
                    break
                time.sleep(0.001 + 0.0002 * rank)
        if ended and rank in ended:
            ended[rank].set()

    threads = [threading.Thread(target=live, args=(rank,), daemon=True) for rank in range(SIZE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
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

    first, *others = run("one", act, lambda number, found: found)
    assert [request for _, request in first] == ["save"]
    assert all(found == first for found in others)


def test_requests_that_come_together_and_one_after_the_other_are_carried_out_alike():
    def act(rank, number, agreement):
        if number == 10 + rank:
            agreement.request("save")
        if (rank, number) == (7, 100):
            agreement.request("stop SIGTERM")

    first, *others = run("several", act, lambda number, found: found and found[-1][1] == "stop SIGTERM")
    assert all(found == first for found in others)


class Failing:
    """A store whose requests fail while it is told so."""

    def __init__(self, store):
        self.store, self.fails = store, False

    def __getattr__(self, name):
        if self.fails:
            raise RuntimeError("Connection reset by peer\nand where")
        return getattr(self.store, name)


def pass_until(agreement, request):
    eventually(lambda: agreement.sync_point() == request)


def test_a_store_that_fails_for_a_while_is_asked_again_and_that_is_said(warnings):
    agreement = StoreAgreement(0, 1, "fails")
    agreement._store = Failing(agreement._store)
    with agreement.listening(warnings.append):
        agreement._store.fails = True
        agreement.request("stop SIGTERM")
        eventually(lambda: warnings)
        assert agreement.sync_point() is None
        agreement._store.fails = False
        pass_until(agreement, "stop SIGTERM")
    assert warnings[0] == "the store of the processes does not answer (Connection reset by peer); trying again"


def test_a_store_that_is_gone_is_an_error_of_the_next_sync_point_which_does_not_hang(warnings, monkeypatch):
    monkeypatch.setattr("vision3d_engine.distributed.coordination.agreement._PATIENCE_S", 1.0)
    agreement = StoreAgreement(0, 1, "gone")
    agreement._store = Failing(agreement._store)
    with agreement.listening(warnings.append):
        agreement._store.fails = True
        with pytest.raises(ProcessError, match=r"store .* is gone.*--resume"):
            pass_until(agreement, "never")


def test_a_process_that_comes_late_is_waited_for_and_named_and_the_request_is_carried_out(warnings, monkeypatch):
    monkeypatch.setattr("vision3d_engine.distributed.coordination.agreement._PATIENCE_S", 0.3)
    first, late = (StoreAgreement(rank, 2, "late comer") for rank in range(2))
    with first.listening(warnings.append):
        first.request("stop SIGTERM")
        eventually(lambda: len(warnings) > 1)
        assert warnings[0] == "to agree on a request ('stop SIGTERM') this process still waits for process 1"
        with late.listening(print):
            eventually(lambda: late._due is not None)
            pass_until(first, "stop SIGTERM")
            pass_until(late, "stop SIGTERM")


def test_processes_that_outlive_their_launcher_agree_and_request_a_stop_when_it_is_gone(warnings):
    ends = [StoreAgreement(rank, 2, "outlives", outlives_launcher=True) for rank in range(2)]
    for end in ends:
        end._launcher = Failing(end._launcher)
    with ends[0].listening(warnings.append), ends[1].listening(warnings.append):
        ends[0].request("save")
        eventually(lambda: all(end._due is not None for end in ends))
        for end in ends:
            pass_until(end, "save")
        for end in ends:
            end._launcher.fails = True
        eventually(lambda: all(end._due is not None for end in ends))
        for end in ends:
            pass_until(end, "stop the launcher is gone")
    assert warnings == []


def test_a_request_that_comes_after_one_has_ended_is_carried_out_by_nobody_and_nobody_waits(
    monkeypatch,
):
    monkeypatch.setattr("vision3d_engine.distributed.coordination.agreement._PATIENCE_S", 10.0 * PATIENCE_S)

    first_ended = threading.Event()

    def act(rank, number, agreement):
        if rank == SIZE - 1 and number == 395:
            assert first_ended.wait(PATIENCE_S)
            agreement.request("save")

    found = run("late", act, lambda number, found: number == 400, ended={0: first_ended})
    assert found == [[] for _ in range(SIZE)]
