"""What launchers say."""

import pytest

from vision3d_engine import ConfigError
from vision3d_engine.distributed.launch.launcher import find_launch, first_host, stated_local_rank

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
SLURM = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "2",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_NODELIST": "gpu[07-09,12],other5",
}
MPIRUN = {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}


def without(*names):
    return {name: value for name, value in TORCHRUN.items() if name not in names}


@pytest.fixture
def started(monkeypatch):
    """Return a function that lets this process look as if a launcher had started it."""
    for name in TORCHRUN | SLURM | MPIRUN:
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


def test_the_variables_of_kubernetes_are_those_of_torchrun_without_a_local_rank(started):
    started(**without("LOCAL_RANK"))
    launch = find_launch()
    assert (launch.rank, launch.size, launch.local_rank, launch.host) == (3, 4, None, "10.0.0.1")


def test_mpirun_says_who_and_the_script_says_where(started):
    started(**MPIRUN, MASTER_ADDR="10.0.0.1", MASTER_PORT="29500")
    launch = find_launch()
    assert (launch.rank, launch.size, launch.local_rank, launch.port) == (3, 4, 1, 29500)


@pytest.mark.parametrize(
    ("variables", "missing"),
    [
        (without("WORLD_SIZE"), "but not WORLD_SIZE"),
        (without("RANK", "LOCAL_RANK"), "but not RANK"),
        (without("MASTER_ADDR", "MASTER_PORT"), "but not MASTER_ADDR, MASTER_PORT"),
        (without("MASTER_PORT"), "but not MASTER_PORT"),
        (MPIRUN, "but not MASTER_ADDR, MASTER_PORT"),
    ],
)
def test_variables_that_are_set_in_part_are_an_error_that_names_what_is_missing(variables, missing, started):
    started(**variables)
    with pytest.raises(ConfigError, match=f"{missing}: .* one of several.*unset RANK and WORLD_SIZE"):
        find_launch()


@pytest.mark.parametrize(
    ("change", "message"),
    [({"RANK": "4"}, "RANK counts from 0"), ({"WORLD_SIZE": "two"}, "WORLD_SIZE=two; it must be a whole number")],
)
def test_variables_that_cannot_be_right_are_an_error(change, message, started):
    started(**(TORCHRUN | change))
    with pytest.raises(ConfigError, match=message):
        find_launch()


@pytest.mark.parametrize("variables", [{"WORLD_SIZE": "1"}, {"WORLD_SIZE": "1", "RANK": "0"}, {"LOCAL_RANK": "1"}])
def test_one_process_needs_no_address(variables, started):
    started(**variables)
    assert find_launch() is None


def test_srun_is_understood_although_a_script_sets_some_of_torchruns_variables(started):
    started(**SLURM, WORLD_SIZE="4", MASTER_ADDR="10.0.0.9", MASTER_PORT="1234")
    assert (find_launch().rank, find_launch().local_rank) == (3, 1)


@pytest.mark.parametrize("variables", [TORCHRUN, SLURM, MPIRUN])
def test_a_local_rank_counts_for_the_processes_that_were_started_and_not_for_their_children(variables, started):
    started(**variables)
    assert stated_local_rank(3, 4) == 1
    assert stated_local_rank(1, 8) is None
