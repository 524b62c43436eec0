"""Real processes that were started without torchrun know how many they are, and each takes a device of its own."""

from pathlib import Path

from tests.stories.launching import free_port, outputs_of, results_of, start_anew, start_ranks

SCRIPT = Path(__file__).parent / "launched_script.py"


def test_processes_that_kubernetes_starts_are_one_run_and_count_themselves_on_each_machine():
    assert results_of(start_ranks(SCRIPT, "env", start=start_anew)) == ["0 2 0 cpu", "1 2 1 cpu"]


def test_processes_that_mpirun_starts_are_one_run():
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "OMPI_COMM_WORLD_SIZE": 2}
    places = [{"OMPI_COMM_WORLD_RANK": rank, "OMPI_COMM_WORLD_LOCAL_RANK": rank} for rank in range(2)]
    assert results_of([start_anew(SCRIPT, "env", **address, **place) for place in places]) == ["0 2 0 cpu", "1 2 1 cpu"]


def test_processes_that_a_script_spawns_take_a_device_each(tmp_path):
    assert results_of([start_anew(SCRIPT, "spawn", tmp_path)]) == ["0 2 0 cuda:0", "1 2 1 cuda:1"]


def test_processes_that_a_task_of_slurm_spawns_take_a_device_each(tmp_path):
    """The task's own number on the machine, 0, is not that of its children."""
    task = {"SLURM_PROCID": 0, "SLURM_LOCALID": 0, "SLURM_STEP_ID": 0, "SLURM_NTASKS": 2, "LOCAL_RANK": 0}
    found = results_of([start_anew(SCRIPT, "spawn", tmp_path, RANK=0, WORLD_SIZE=1, **task)])
    assert found == ["0 2 0 cuda:0", "1 2 1 cuda:1"]


def test_processes_in_a_group_of_the_scripts_own_take_a_device_each(tmp_path):
    found = results_of([start_anew(SCRIPT, "own group", tmp_path, RANK=rank) for rank in range(2)])
    assert found == ["0 2 0 cuda:0", "1 2 1 cuda:1"]


def test_a_process_that_knows_its_rank_alone_is_no_run_of_its_own():
    ((code, _, error),) = outputs_of([start_anew(SCRIPT, "env", RANK=1)])
    assert code == 1
    assert "ConfigError: the environment has RANK=1, but not WORLD_SIZE, MASTER_ADDR, MASTER_PORT" in error
