"""``trainer.memory_snapshot``: the history of a CUDA device's memory in a file; elsewhere a message."""

import pickle

import pytest
import torch

from tests.toys import ToyEpochTrainer, settings


def trainer_in(folder, **options):
    return ToyEpochTrainer(settings(folder, memory_snapshot=True, **options))


def test_on_the_cpu_a_message_says_that_nothing_is_recorded_and_the_run_goes_on(tmp_path):
    trainer = trainer_in(tmp_path, device="cpu")
    trainer.run()
    text = "".join(path.read_text() for path in (tmp_path / "logs").glob("train-*.log"))
    assert "trainer.memory_snapshot is on, and the device is cpu: only the memory of CUDA devices is recorded" in text
    assert trainer.updates == 3
    assert not (tmp_path / "debug").exists()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="memory is recorded on CUDA devices alone")
@pytest.mark.parametrize("fails", [False, True])
def test_on_cuda_the_file_holds_what_was_allocated_also_when_there_was_no_memory_left(tmp_path, fails):
    trainer = trainer_in(tmp_path, device="cuda")
    if fails:
        trainer.train_step = lambda *_: torch.empty(1 << 60, device="cuda")
        with pytest.raises(torch.OutOfMemoryError):
            trainer.run()
    else:
        trainer.run()
    with (tmp_path / "debug" / "memory-rank0.pickle").open("rb") as file:
        assert any(pickle.load(file)["device_traces"])
