"""Who may change the folder of a run, and that nothing of an earlier run is lost before the new one stands."""

import json
import os
import shutil
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.toys import ToyEpochTrainer, ToySingleTester, rows_loader, save_weights, settings
from vision3d_engine import EngineError, FolderInUseError
from vision3d_engine.core.errors import FolderError


def files(folder):
    found = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".log" and path.name != ".lock"]
    return {path.relative_to(folder): path.read_bytes() for path in found}


def steps(folder, phase="train"):
    found = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [row["step"] for row in found if row["phase"] == phase]


class Selecting(ToyEpochTrainer):
    def _register(self, *args):
        super()._register(*args)
        self.save_best_model_on_metric("mae", largest=False)


# ------------------------------------------------------------------------------------------- --overwrite


class Empty(Selecting):
    def _register(self, train_loader, val_loader, lr):
        super()._register(rows_loader(0), val_loader, lr)


class Misfit(Selecting):
    def _register(self, train_loader, val_loader, lr):
        super()._register(train_loader, val_loader, lr)
        self.register_model(torch.nn.Linear(5, 1).double())


@pytest.mark.parametrize(
    ("make", "trainer"),
    [
        (Empty, {}),
        (Misfit, {"checkpoint": "best_mae.pth"}),
        (Selecting, {"checkpoint": "none.pth"}),
    ],
)
def test_an_overwriting_run_that_cannot_start_leaves_all_files_as_they_were(make, trainer, tmp_path):
    Selecting(settings(tmp_path, log_steps=1)).run()
    before = files(tmp_path)
    with pytest.raises(EngineError):
        make(settings(tmp_path, overwrite=True, **trainer)).run()
    assert files(tmp_path) == before


def test_an_overwriting_run_starts_from_a_checkpoint_of_the_folder_itself(tmp_path):
    Selecting(settings(tmp_path)).run()
    best = torch.load(tmp_path / "checkpoints" / "best_mae.pth", weights_only=True)["model"]

    class Started(ToyEpochTrainer):
        def before_train(self):
            self.first = {key: value.clone() for key, value in self.model.state_dict().items()}

    toy = Started(settings(tmp_path, overwrite=True, checkpoint="best_mae.pth"))
    toy.run()
    assert all(torch.equal(toy.first[key], best[key]) for key in best)
    assert toy.total_steps == 3
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {"checkpoint.pth", "checkpoint.prev.pth", "epoch-1.pth"}


class Watching(ToyEpochTrainer):
    """Looks at the folder before and after its first checkpoint.pth."""

    breaks = False

    def names(self):
        folder = Path(self.output_dir) / "checkpoints"
        return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.pth"))

    def before_train(self):
        self.found = [self.names()]

    def after_train_step(self, epoch, iteration, data_dict, output_dict, result_dict):
        if self.breaks:
            raise OSError("broken off")

    def before_val_epoch(self, epoch):
        self.finish_saving()
        self.found.append(self.names())


def test_old_checkpoints_lie_aside_until_the_first_new_one_is_on_the_disk(tmp_path):
    ToyEpochTrainer(settings(tmp_path)).run()
    toy = Watching(settings(tmp_path, overwrite=True))
    toy.run()
    old = ["overwritten/checkpoint.prev.pth", "overwritten/checkpoint.pth", "overwritten/epoch-1.pth"]
    assert toy.found == [old, ["checkpoint.pth", "epoch-1.pth"]]


def test_after_an_overwriting_run_that_broke_off_a_resume_starts_anew_and_says_where_the_old_files_are(tmp_path):
    ToyEpochTrainer(settings(tmp_path, max_epoch=2)).run()
    for _ in range(2):
        toy = Watching(settings(tmp_path, overwrite=True))
        toy.breaks = True
        with pytest.raises(OSError, match="broken off"):
            toy.run()
    toy = Watching(settings(tmp_path, resume=True))
    log_file = toy.log_file
    toy.run()
    assert toy.total_steps == 3
    assert "overwritten/epoch-2.pth" in toy.found[0]
    assert "put aside is in" in Path(log_file).read_text()
    assert toy.found[1] == ["checkpoint.pth", "epoch-1.pth"]


# ------------------------------------------------------------------------------------------- who may change files


def _look_by_validating(cfg):
    ToyEpochTrainer(cfg | {"trainer": cfg["trainer"] | {"resume": True}}).run(only_validation=True)


def _look_by_loading(cfg):
    ToyEpochTrainer(cfg).load("checkpoint.pth")


def _look_by_loading_an_epoch(cfg):
    ToyEpochTrainer(cfg).load("epoch-1.pth")


def _look_by_testing(cfg):
    ToySingleTester(cfg, checkpoint="checkpoint.pth").run()


@pytest.mark.parametrize("look", [_look_by_validating, _look_by_loading, _look_by_loading_an_epoch, _look_by_testing])
def test_who_looks_into_the_folder_of_a_live_run_removes_none_of_its_numbers(look, tmp_path):
    class Live(ToyEpochTrainer):
        def after_train_step(self, epoch, iteration, data_dict, output_dict, result_dict):
            if (epoch, iteration) == (2, 2):
                self._context.writers.flush()
                self.finish_saving()
                look(settings(tmp_path))

    Live(settings(tmp_path, max_epoch=2, log_steps=1)).run()
    assert steps(tmp_path) == [1, 2, 3, 4, 5, 6]


def test_a_validation_puts_no_damaged_checkpoint_aside(tmp_path):
    ToyEpochTrainer(settings(tmp_path)).run()
    (tmp_path / "checkpoints" / "checkpoint.pth").write_bytes(b"")
    before = files(tmp_path / "checkpoints")
    _look_by_validating(settings(tmp_path))
    assert files(tmp_path / "checkpoints") == before


@pytest.mark.parametrize("name", ["checkpoint.pth", "epoch-1.pth"])
def test_rows_after_a_checkpoint_that_is_loaded_before_a_run_are_written_once(name, tmp_path):
    toy = ToyEpochTrainer(settings(tmp_path, max_epoch=3, log_steps=1))
    toy.run()
    if name == "checkpoint.pth":
        toy.load(name)
        assert steps(tmp_path) == list(range(1, 10))
    toy.load("epoch-1.pth")
    toy.run()
    assert steps(tmp_path) == list(range(1, 10))
    assert steps(tmp_path, "val") == [1, 2, 3]


def test_the_lock_survives_a_backup_of_the_folder_by_a_hook(tmp_path):
    class Backup(ToyEpochTrainer):
        def after_train_epoch(self, epoch, summary_dict):
            self.finish_saving()
            shutil.copytree(self.output_dir, tmp_path / "backup")
            ToyEpochTrainer(settings(tmp_path / "run")).run()

    with pytest.raises(FolderInUseError, match="in use by a run of this process"):
        Backup(settings(tmp_path / "run")).run()


@pytest.mark.parametrize("shared", ["shared", "first/checkpoints"])
def test_two_runs_with_one_checkpoint_folder_are_not_possible(shared, tmp_path):
    def cfg(name):
        cfg = settings(tmp_path / name)
        cfg["exp"]["checkpoint_dir"] = str(tmp_path / shared)
        return cfg

    class Second(ToyEpochTrainer):
        def before_train(self):
            ToyEpochTrainer(cfg("second")).run()

    with pytest.raises(FolderInUseError, match=rf"{shared}' is in use by a run of this process"):
        Second(cfg("first")).run()


# ------------------------------------------------------------------------------------------- paths


def test_a_script_that_changes_its_folder_keeps_its_run_in_one_place(tmp_path):
    (tmp_path / "elsewhere").mkdir()

    class Wanderer(Selecting):
        def before_train_epoch(self, epoch):
            os.chdir(tmp_path / "elsewhere")

    Wanderer(settings("run", max_epoch=2, log_steps=1)).run()
    assert not list((tmp_path / "elsewhere").iterdir())
    assert steps(tmp_path / "run") == [1, 2, 3, 4, 5, 6]
    names = {path.name for path in (tmp_path / "run" / "checkpoints").glob("*.pth")}
    assert names == {"best_mae.pth", "checkpoint.pth", "checkpoint.prev.pth", "epoch-1.pth", "epoch-2.pth"}


def test_a_checkpoint_is_the_one_that_lay_there_when_the_trainer_was_made(tmp_path, monkeypatch):
    save_weights(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    toy = ToyEpochTrainer(settings("run", checkpoint="checkpoints/weights.pth"))
    monkeypatch.chdir(tmp_path / "elsewhere")
    toy.run()


def test_the_home_folder_is_meant_by_a_tilde_in_every_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    names = {name: f"~/{name}" for name in ("output_dir", "checkpoint_dir", "log_dir", "event_dir")}
    save_weights(tmp_path / "home")
    toy = ToyEpochTrainer({"exp": names, "trainer": {"max_epoch": 1, "checkpoint": "~/checkpoints/weights.pth"}})
    toy.load_weights("~/checkpoints/weights.pth")
    toy.run()
    toy.load("~/checkpoint_dir/checkpoint.pth")
    assert {path.name for path in (tmp_path / "home").iterdir()} == {*names, "checkpoints"}
    assert not (tmp_path / "~").exists()


# ------------------------------------------------------------------------------------------- saves before the run


def test_a_save_in_the_constructor_is_written_before_the_run_tidies_its_folder(tmp_path, monkeypatch):
    from vision3d_engine.checkpoint import state_files

    started, write = threading.Event(), state_files.write_checkpoint

    def slow(path, *args):
        half = path.with_name(f".{path.name}.1.tmp")
        half.touch()
        started.set()
        time.sleep(0.5)
        write(path, *args)
        half.unlink()

    monkeypatch.setattr(state_files, "write_checkpoint", slow)
    toy = ToyEpochTrainer(settings(tmp_path, async_save=True))
    toy.save("first.pth")
    assert started.wait(60)
    toy.run()
    assert (tmp_path / "checkpoints" / "first.pth").is_file()


def test_a_run_with_an_average_asks_for_space_for_two_sets_of_weights(tmp_path, monkeypatch):
    free = SimpleNamespace(free=4 * 8 + 1)
    monkeypatch.setattr("vision3d_engine.run.run_folder.shutil.disk_usage", lambda path: free)
    ToyEpochTrainer(settings(tmp_path / "plain")).run()
    with pytest.raises(FolderError, match="the weights alone need"):
        ToyEpochTrainer(settings(tmp_path / "average", ema_decay=0.9)).run()
