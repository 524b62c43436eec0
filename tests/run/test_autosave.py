"""What a run says and does when it is stopped: the word "saved" follows the file on the disk."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch

from tests.toys import ToyEpochTrainer, ToyIterTrainer, settings
from tests.trainers.test_resuming import Wide, small_disk  # noqa: F401  a fixture
from vision3d_engine import FolderError


class StoppedOnAFullDisk(Wide):
    """Gets SIGTERM in epoch 2, when there is no space left."""

    stays_full = True

    def after_train_step(self, epoch, iteration, data_dict, output_dict, result_dict):
        super().after_train_step(epoch, iteration, data_dict, output_dict, result_dict)
        if epoch == 2 and iteration == 1:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("async_save", [True, False])
def test_a_stop_without_space_says_that_nothing_was_saved_and_keeps_the_old_file(small_disk, async_save):  # noqa: F811
    toy = StoppedOnAFullDisk(settings(small_disk, max_epoch=3, async_save=async_save))
    log_file = Path(toy.log_file)
    with pytest.raises(FolderError, match=r"cannot write '.*checkpoint\.pth': No space left on device"):
        toy.run()
    assert "'checkpoint.pth' is saved" not in log_file.read_text()
    state = torch.load(small_disk / "checkpoints" / "checkpoint.pth", weights_only=True)
    assert state["metadata"]["epoch"] == 1


@pytest.mark.parametrize("kind", [ToyEpochTrainer, ToyIterTrainer])
def test_a_cadence_in_seconds_saves_at_the_next_update(kind, tmp_path):
    class Slow(kind):
        def after_train_step(self, *args):
            super().after_train_step(*args)
            newest = tmp_path / "checkpoints" / "checkpoint.pth"
            if not self.seen:
                for _ in range(1000):
                    time.sleep(0.01)
                    if self._run.autosave.due_at == 0:
                        break
            self._run.checkpoints.join()
            self.seen.append(newest.exists())

    toy = Slow(settings(tmp_path, save_every="0.05 s"))
    toy.seen = []
    toy.run()
    assert toy.seen[0] is False
    assert any(toy.seen[1:])


def test_a_run_whose_time_is_over_ends_with_its_own_code(tmp_path):
    class Endless(ToyEpochTrainer):
        def after_train_step(self, *args):
            time.sleep(0.02)

    toy = Endless(settings(tmp_path, max_epoch=1000, max_time="0.3 s"))
    with pytest.raises(SystemExit) as caught:
        toy.run()
    assert caught.value.code == 75
    resumed = ToyEpochTrainer(settings(tmp_path, max_epoch=toy.epoch + 1, resume=True))
    resumed.run()
    assert resumed.epoch == toy.epoch + 1
