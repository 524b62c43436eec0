"""A run that makes no step for long writes where its threads and data workers are, and goes on."""

import os
import tempfile
from pathlib import Path

import pytest

from tests.patience import eventually
from tests.toys import Rows, ToyEpochTrainer, settings
from vision3d_engine import ConfigError, build_dataloader


def stacks(folder, word):
    """Return the text of the files that hold a word, once they are complete."""
    texts = [path.read_text() for path in Path(folder).glob("debug/hang-*.txt")]
    return [text for text in texts if word in text]


def test_a_step_that_hangs_is_shown_with_its_line_and_the_run_goes_on(tmp_path, capfd):
    class Hangs(ToyEpochTrainer):
        def train_step(self, epoch, iteration, data_dict):
            if iteration == 2:
                eventually(lambda: stacks(tmp_path, "in train_step"))
            return super().train_step(epoch, iteration, data_dict)

    toy = Hangs(settings(tmp_path, hang_after="1 s"))
    toy.run()
    assert toy.updates == 3
    (text,) = stacks(tmp_path, "in train_step")
    assert text.startswith("process 0: no step for 1 s (trainer.hang_after) in train epoch 1, iteration 2\n")
    assert "test_hang_watch.py" in text
    said = capfd.readouterr().err
    assert said.count("WARNING | no step for 1 s (trainer.hang_after) in train epoch 1, iteration 2: the stacks") == 1


class HangsAt3(Rows):
    folder: Path

    def __getitem__(self, index):
        if index == 3:
            eventually(lambda: stacks(self.folder, "data worker"))
        return super().__getitem__(index)


def test_a_data_worker_that_hangs_is_shown_with_its_sample_and_its_line(tmp_path):
    data = HangsAt3(6)
    data.folder = tmp_path
    toy = ToyEpochTrainer(settings(tmp_path, hang_after="1 s"), build_dataloader(data, 2, num_workers=2))
    toy.run()
    assert toy.updates == 3
    (text,) = stacks(tmp_path, "data worker")
    workers = text.split("data worker ")[1:]
    (hanging,) = [worker for worker in workers if "sample 3 (epoch 1, position 3)" in worker]
    assert "test_hang_watch.py" in hanging
    assert "in __getitem__" in hanging
    assert not list(Path(tempfile.gettempdir()).glob(f"vision3d_engine-{os.getpid()}*"))


def test_the_watch_can_be_turned_off(tmp_path):
    toy = ToyEpochTrainer(settings(tmp_path, hang_after=None))
    toy.run()
    assert toy.updates == 3


def test_a_time_that_is_none_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="hang_after"):
        ToyEpochTrainer(settings(tmp_path, hang_after="soon"))
