"""Which checkpoint a run goes on from when the newest file is not what it should be."""

import pickle
import random
from pathlib import Path

import pytest
import torch

from tests.toys import ToyEpochTrainer, settings
from vision3d_engine import CheckpointError


def _dangle(path):
    path.unlink()
    path.symlink_to("nowhere.pth")


def _loop(path):
    path.unlink()
    path.symlink_to(path.name)


def _folder(path):
    path.unlink()
    path.mkdir()
    (path / "inside").write_text("x")


def _pickle(path):
    path.write_bytes(pickle.dumps({"model": Path()}))


WRONG = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("<html>404</html>\n" * 50),
    "zeros": lambda path: path.write_bytes(bytes(5000)),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "a pickle": _pickle,
    "python objects": lambda path: torch.save({"model": Path()}, path),
    "a list": lambda path: torch.save([1, 2], path),
    "no model": lambda path: torch.save({"weights": torch.ones(3)}, path),
    "a folder": _folder,
    "missing": Path.unlink,
    "a dangling link": _dangle,
    "a link to itself": _loop,
    **{
        f"bytes {seed}": lambda path, seed=seed: path.write_bytes(random.Random(seed).randbytes(3000))
        for seed in range(6)
    },
}


@pytest.mark.parametrize("spoil", WRONG.values(), ids=WRONG)
def test_the_checkpoint_before_it_is_used_whatever_is_wrong_with_the_newest(spoil, tmp_path):
    reference = ToyEpochTrainer(settings(tmp_path / "whole", max_epoch=3))
    reference.run()
    ToyEpochTrainer(settings(tmp_path / "run", max_epoch=2)).run()
    spoil(tmp_path / "run" / "checkpoints" / "checkpoint.pth")
    toy = ToyEpochTrainer(settings(tmp_path / "run", max_epoch=3, resume=True))
    log_file = toy.log_file
    toy.run()
    assert "Going on from 'checkpoint.prev.pth'" in Path(log_file).read_text()
    newest = [
        torch.load(tmp_path / name / "checkpoints/checkpoint.pth", weights_only=True) for name in ("whole", "run")
    ]
    assert newest[0]["metadata"] == newest[1]["metadata"] == {"epoch": 3, "total_steps": 9, "updates": 9, "samples": 18}
    assert all(torch.equal(newest[0]["model"][key], newest[1]["model"][key]) for key in newest[0]["model"])


def test_a_second_damaged_file_replaces_the_first_one_that_was_put_aside(tmp_path):
    folder = tmp_path / "checkpoints"
    for epochs, spoil in ((1, _folder), (2, _folder), (3, WRONG["text"])):
        ToyEpochTrainer(settings(tmp_path, max_epoch=epochs, resume=True)).run()
        spoil(folder / "checkpoint.pth")
    ToyEpochTrainer(settings(tmp_path, max_epoch=4, resume=True)).run()
    assert "404" in (folder / "checkpoint.pth.damaged").read_text()


def test_a_sound_checkpoint_that_does_not_fit_is_an_error_and_stays(tmp_path):
    class Other(ToyEpochTrainer):
        def _register(self, *args):
            super()._register(*args)
            self.model = self.optimizer = None
            model = self.register_model(torch.nn.Linear(5, 1).double())
            self.register_optimizer(torch.optim.SGD(model.parameters(), lr=0.1))
            self.register_scheduler(None)

    ToyEpochTrainer(settings(tmp_path, max_epoch=2)).run()
    before = (tmp_path / "checkpoints" / "checkpoint.pth").read_bytes()
    with pytest.raises(CheckpointError, match="shape differs"):
        Other(settings(tmp_path, max_epoch=3, resume=True)).run()
    assert (tmp_path / "checkpoints" / "checkpoint.pth").read_bytes() == before


def test_when_both_are_damaged_the_run_is_refused_and_both_stay(tmp_path):
    ToyEpochTrainer(settings(tmp_path, max_epoch=2)).run()
    for name in ("checkpoint.pth", "checkpoint.prev.pth"):
        WRONG["text"](tmp_path / "checkpoints" / name)
    with pytest.raises(CheckpointError, match=r"checkpoint\.prev\.pth'"):
        ToyEpochTrainer(settings(tmp_path, max_epoch=3, resume=True)).run()
    assert {"checkpoint.pth", "checkpoint.prev.pth"} <= {path.name for path in (tmp_path / "checkpoints").iterdir()}
