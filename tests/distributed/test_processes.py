"""Functions for scripts."""

from vision3d_engine.utils.distributed import get_rank, is_distributed, is_master, master_only


def test_a_single_process_is_the_main_one():
    assert is_master()
    assert get_rank() == 0
    assert not is_distributed()
    assert master_only(lambda x: x + 1)(2) == 3
