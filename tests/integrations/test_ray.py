"""What is reported to Ray Train, and what is taken from it; Ray itself is in tests/stories/test_ray.py."""

import importlib.util
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.toys import ToyEpochTrainer, settings
from vision3d_engine import ConfigError
from vision3d_engine.core.errors import EngineError
from vision3d_engine.integrations.ray import report


class Kept:
    """A checkpoint as Ray hands one out: a folder that is there for a while."""

    def __init__(self, folder):
        self.folder = folder

    @contextmanager
    def as_directory(self):
        yield str(self.folder)


@pytest.fixture
def ray(monkeypatch):
    """Stands in for Ray in this process, and notes what it is told: metrics, and the state in the file with them."""
    reports = []

    def note(metrics, checkpoint=None):
        files = sorted(Path(checkpoint).iterdir()) if checkpoint else []
        reports.append((metrics, {file.name: torch.load(file, weights_only=True)["metadata"] for file in files}))

    train = SimpleNamespace(
        report=note,
        get_context=object,
        get_checkpoint=lambda: None,
        Checkpoint=SimpleNamespace(from_directory=str),
        reports=reports,
    )
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(train=train))
    monkeypatch.setitem(sys.modules, "ray.train", train)
    return train


def test_every_validation_is_reported_with_the_checkpoint_that_was_saved_after_it(ray, tmp_path):
    class Trainer(ToyEpochTrainer):
        def after_val_epoch(self, epoch, summary_dict):
            summary_dict["score"] = 2.0 * epoch

    toy = Trainer(settings(tmp_path, max_epoch=2, resume=True))
    report(toy)
    toy.run()
    assert [(found["epoch"], found["total_steps"], found["score"]) for found, _ in ray.reports] == [
        (1, 3, 2),
        (2, 6, 4),
    ]
    assert all(isinstance(found["mae"], float) for found, _ in ray.reports)
    saved = [
        {"epoch": 1, "total_steps": 3, "updates": 3, "samples": 6},
        {"epoch": 2, "total_steps": 6, "updates": 6, "samples": 12},
    ]
    assert [files for _, files in ray.reports] == [{"checkpoint.pth": metadata} for metadata in saved]


def test_a_validation_alone_is_reported_without_a_checkpoint(ray, tmp_path):
    toy = ToyEpochTrainer(settings(tmp_path, resume=True))
    report(toy)
    toy.run(only_validation=True)
    ((metrics, files),) = ray.reports
    assert metrics.keys() == {"mae", "epoch", "total_steps"}
    assert files == {}


def test_a_run_goes_on_from_the_checkpoint_that_ray_has_kept_when_its_folder_is_gone(ray, tmp_path):
    ToyEpochTrainer(settings(tmp_path / "lost", max_epoch=1)).run()
    ray.get_checkpoint = lambda: Kept(tmp_path / "lost" / "checkpoints")
    toy = ToyEpochTrainer(settings(tmp_path / "new", max_epoch=2, resume=True))
    report(toy)
    toy.run()
    assert [metrics["epoch"] for metrics, _ in ray.reports] == [2]


def test_the_run_folder_is_preferred_to_what_ray_has_kept(ray, tmp_path):
    ToyEpochTrainer(settings(tmp_path / "kept", max_epoch=1)).run()
    ToyEpochTrainer(settings(tmp_path / "run", max_epoch=2)).run()
    ray.get_checkpoint = lambda: Kept(tmp_path / "kept" / "checkpoints")
    toy = ToyEpochTrainer(settings(tmp_path / "run", max_epoch=3, resume=True))
    report(toy)
    toy.run()
    assert [metrics["epoch"] for metrics, _ in ray.reports] == [3]


def test_a_run_that_could_not_be_restored_is_refused(ray, tmp_path):
    with pytest.raises(ConfigError, match=r"trainer\.resume is false.*set it to true"):
        report(ToyEpochTrainer(settings(tmp_path)))


def test_outside_of_ray_nothing_is_reported(ray, tmp_path):
    def no_context():
        raise RuntimeError

    ray.get_context = no_context
    toy = ToyEpochTrainer(settings(tmp_path))
    report(toy)
    toy.run()
    assert ray.reports == []
    assert "no worker of Ray Train" in Path(toy.log_file).read_text()


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed")
def test_without_ray_the_error_says_what_to_install(tmp_path):
    with pytest.raises(EngineError, match=r"pip install 'vision3d-engine\[ray\]'"):
        report(ToyEpochTrainer(settings(tmp_path)))
