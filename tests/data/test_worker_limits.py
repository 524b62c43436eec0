"""Errors that tell of a limit of the system; whole runs are in tests/stories."""

import pytest

from vision3d_engine.data.worker_limits import advice_on


@pytest.mark.parametrize(
    ("text", "fix"),
    [
        ("received 0 items of ancdata", "ulimit -n"),
        ("[Errno 24] Too many open files", "ulimit -n"),
        ("unable to open shared memory object </torch_1> in read-write mode: Too many open files (24)", "ulimit -n"),
        ("EOFError()", "ulimit -n"),
        ("unable to mmap 80 bytes from file </torch_1>: Cannot allocate memory (12)", "--shm-size"),
        ("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)", "--shm-size"),
        ("unable to open shared memory object </torch_1> in read-write mode: No space left on device", "--shm-size"),
        ("worker (pid 1) is killed by signal: Bus error. It is possible that dataloader's workers", "--shm-size"),
    ],
)
def test_messages_of_torch_and_python_get_their_way_out(text, fix):
    assert fix in (advice_on(text) or "")


@pytest.mark.parametrize("text", ["a bad cloud", "[Errno 28] No space left on device: 'cache.npy'", ""])
def test_other_errors_get_none(text):
    assert advice_on(text) is None
