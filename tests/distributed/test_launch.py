"""What launchers say, and how processes of one attempt find each other in a store that outlives attempts."""

import threading

import pytest
import torch.distributed as dist

from vision3d_engine import ProcessError
from vision3d_engine.distributed.launch import crowded, find_launch, first_host, meet

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
SLURM = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "2",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_NODELIST": "gpu[07-09,12],other5",
}


@pytest.fixture
def started(monkeypatch):
    """Return a function that lets this process look as if a launcher had started it."""
    for name in TORCHRUN | SLURM:
        monkeypatch.delenv(name, raising=False)

    def start(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return start


def test_a_process_that_nobody_started_is_alone(started):
    assert find_launch() is None


def test_torchrun_wins_over_slurm(started):
    started(**SLURM, **TORCHRUN)
    launch = find_launch()
    assert (launch.rank, launch.size, launch.local_rank) == (3, 4, 1)
    assert (launch.host, launch.port) == ("10.0.0.1", 29500)


def test_a_task_of_slurm_knows_its_place_and_the_first_machine(started):
    started(**SLURM)
    launch = find_launch()
    assert (launch.rank, launch.size, launch.local_rank) == (3, 4, 1)
    assert launch.host == "gpu07"
    assert 20000 <= launch.port < 30000
    started(MASTER_ADDR="10.0.0.9", MASTER_PORT="1234")
    assert (find_launch().host, find_launch().port) == ("10.0.0.9", 1234)


@pytest.mark.parametrize("change", [{"SLURM_NTASKS": "1"}, {"SLURM_STEP_ID": None}, {"SLURM_PTY_PORT": "1"}])
def test_a_shell_of_slurm_is_alone(change, started, monkeypatch):
    started(**{name: value for name, value in (SLURM | change).items() if value is not None})
    assert find_launch() is None


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node[01-03,07],other5", "node01"),
        ("node5", "node5"),
        ("a1,b[2-3]", "a1"),
        ("rack[1-2]node[3,7]", "rack1node3"),
        ("n[007]-ib", "n007-ib"),
    ],
)
def test_the_first_machine_of_a_list(nodes, first):
    assert first_host(nodes) == first


def test_processes_of_an_attempt_meet_although_the_store_remembers_dead_ones():
    store = dist.HashStore()
    for attempt, size in ((1, 3), (2, 3), (3, 2), (4, 4)):
        found = [None] * size

        def join(rank, found=found, size=size):
            found[rank] = meet(store, rank, size, 10)

        threads = [threading.Thread(target=join, args=(rank,)) for rank in range(size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert found == [attempt] * size


def test_who_does_not_join_is_named():
    with pytest.raises(ProcessError, match="2 of 3 processes did not join within 0 s: 1, 2"):
        meet(dist.HashStore(), 0, 3, 0.1)


def test_too_many_threads_for_the_cores_are_said_with_the_fix():
    def crew(cores, threads):
        return [("node1", frozenset(cores), threads)]

    shared, own = range(8), (range(4), range(4, 8))
    assert crowded(crew(shared, 4) + crew(shared, 4)) == []
    assert crowded(crew(own[0], 4) + crew(own[1], 4)) == []
    assert crowded(crew(range(1), 1) + crew(range(1), 1)) == [], "nothing can be done"
    (note,) = crowded(crew(shared, 8) + crew(shared, 8))
    assert "2 processes on node1 have 16 torch threads on 8 cores" in note
    assert "set OMP_NUM_THREADS=4" in note
