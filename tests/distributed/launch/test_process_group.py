"""How processes of one attempt find each other in a store that outlives attempts, and their threads."""

import socket
import threading

import pytest
import torch.distributed as dist

from vision3d_engine import ProcessError
from vision3d_engine.distributed.launch.launcher import Launch
from vision3d_engine.distributed.launch.process_group import (
    local_rank_among,
    meet,
    open_process_group,
    thread_warnings,
)


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
    def process(cores, threads):
        return [("node1", frozenset(cores), threads)]

    shared, own = range(8), (range(4), range(4, 8))
    assert thread_warnings(process(shared, 4) + process(shared, 4)) == []
    assert thread_warnings(process(own[0], 4) + process(own[1], 4)) == []
    assert thread_warnings(process(range(1), 1) + process(range(1), 1)) == [], "nothing can be done"
    (note,) = thread_warnings(process(shared, 8) + process(shared, 8))
    assert "2 processes on node1 have 16 torch threads on 8 cores" in note
    assert "set OMP_NUM_THREADS=4" in note


def test_processes_count_themselves_on_their_machine_unless_the_launcher_speaks_of_all():
    unknown = [("a", 0), ("b", None), ("a", None), ("b", None)]
    assert [local_rank_among(unknown, rank) for rank in range(4)] == [0, 0, 1, 1]
    in_containers = [("same name", 0), ("same name", 0)]
    assert [local_rank_among(in_containers, rank) for rank in range(2)] == [0, 0]


def test_a_port_that_is_taken_is_an_error_that_says_where_and_what_to_set():
    with socket.socket() as other:
        other.bind(("localhost", 0))
        other.listen()
        port = other.getsockname()[1]
        launch = Launch(rank=0, size=2, local_rank=0, host="localhost", port=port)
        with pytest.raises(
            ProcessError, match=f"process 0 of 2 cannot open .* at localhost:{port}.* another MASTER_PORT"
        ):
            open_process_group(launch, "cpu", 1)
