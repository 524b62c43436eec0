"""What launchers say."""

import pytest

from vision3d_engine.distributed.launch.launcher import find_launch, first_host

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
