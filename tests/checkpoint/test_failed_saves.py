"""A file that could not be written counts for nothing: no score, no name, no removal of an older one, no silence."""

import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.patience import PATIENCE_S
from tests.toys import ToyEpochTrainer, settings
from vision3d_engine import CheckpointError, FolderError
from vision3d_engine.checkpoint import files
from vision3d_engine.checkpoint.manager import CheckpointManager

pytestmark = pytest.mark.filterwarnings("ignore:.*Training goes on")


@pytest.fixture
def full(monkeypatch):
    """Names of files for which the disk is full."""
    names, write = set(), files.atomic_write

    def atomic_write(path, *options):
        if path.name in names:
            raise OSError(28, "No space left on device")
        return write(path, *options)

    monkeypatch.setattr(files, "atomic_write", atomic_write)
    return names


def load(path):
    return torch.load(path, weights_only=True)


def filled(value):
    model = nn.Linear(2, 1)
    with torch.no_grad():
        model.weight.fill_(value)
    return model


class Failing(ToyEpochTrainer):
    """Has a score for every epoch; from the validation of epoch 2 to epoch 3 files cannot be written."""

    scores = (0.5, 0.9, 0.8, 0.8)

    def after_val_epoch(self, epoch, summary_dict):
        summary_dict["score"] = self.scores[epoch - 1]
        if epoch == 2:
            self.finish_saving()
            self.fail()

    def before_train_epoch(self, epoch):
        if epoch == 3:
            try:
                self.finish_saving()
            except FolderError as error:
                self.log(error)
            self.at_epoch_3 = load(self.folder / "checkpoint.pth") if self.folder.is_dir() else None
            self.heal()

    def run_all(self):
        self.save_best_model_on_metric("score")
        self.run()
        return self

    folder = None


def failing_trainer(tmp_path, full, fault, **trainer):
    folder, aside = tmp_path / "checkpoints", tmp_path / "aside"

    def vanish():
        folder.rename(aside)
        folder.write_text("")

    def come_back():
        folder.unlink()
        aside.rename(folder)

    toy = Failing(settings(tmp_path, max_epoch=4, **trainer))
    toy.folder = folder
    toy.fail, toy.heal = {"full": (lambda: full.add("best_score.pth"), full.clear), "gone": (vanish, come_back)}[fault]
    return toy


@pytest.mark.parametrize("async_save", [True, False])
@pytest.mark.parametrize("fault", ["full", "gone"])
def test_a_best_model_that_could_not_be_written_is_replaced_by_the_next_good_one(tmp_path, full, fault, async_save):
    toy = failing_trainer(tmp_path, full, fault, async_save=async_save)
    log_file = toy.log_file
    toy.run_all()
    assert "Training goes on" in Path(log_file).read_text()
    assert load(tmp_path / "checkpoints" / "best_score.pth")["metadata"]["epoch"] == 3
    state = load(tmp_path / "checkpoints" / "checkpoint.pth")["ckpt_manager"]
    assert state["best_scores"]["score"] == {"score": 0.8, "largest": True, "epoch": 3}
    assert state["scores"]["score"] == dict(enumerate(toy.scores, start=1))


@pytest.mark.parametrize("async_save", [True, False])
def test_a_checkpoint_holds_the_best_score_of_the_file_on_the_disk(tmp_path, full, async_save):
    toy = failing_trainer(tmp_path, full, "full", async_save=async_save).run_all()
    assert toy.at_epoch_3["metadata"]["epoch"] == 2
    assert toy.at_epoch_3["ckpt_manager"]["best_scores"]["score"]["score"] == 0.5


class Held:
    """Holds the next write until it is let go."""

    def __init__(self, monkeypatch):
        self.go, write = threading.Event(), files.make_folder
        monkeypatch.setattr(files, "make_folder", lambda path: (self.go.wait(PATIENCE_S), write(path))[1])


def test_a_score_below_one_whose_file_is_on_its_way_waits_for_the_verdict(tmp_path, full, monkeypatch):
    manager = CheckpointManager(tmp_path, in_background=True, warn=lambda _: full.clear())
    manager.add_metric("score")
    assert manager.update_best_model({"score": 0.5}, {"epoch": 1}, filled(1)) == {"score": 0.5}
    manager.join()
    held = Held(monkeypatch)
    full.add("best_score.pth")
    assert manager.update_best_model({"score": 0.9}, {"epoch": 2}, filled(2)) == {"score": 0.9}
    assert manager.update_best_model({"score": 0.4}, {"epoch": 3}, filled(3)) == {}
    assert manager.state_dict()["best_scores"]["score"]["score"] == 0.5
    threading.Timer(0.2, held.go.set).start()
    assert manager.update_best_model({"score": 0.8}, {"epoch": 4}, filled(4)) == {"score": 0.8}
    manager.join()
    assert load(tmp_path / "best_score.pth")["metadata"]["epoch"] == 4
    assert manager.state_dict()["best_scores"]["score"]["score"] == 0.8


def test_a_score_below_one_whose_file_arrives_is_not_saved(tmp_path, monkeypatch):
    manager, held = CheckpointManager(tmp_path, in_background=True), Held(monkeypatch)
    manager.add_metric("error", largest=False)
    assert manager.update_best_model({"error": 1}, {"epoch": 1}, filled(1)) == {"error": 1}
    threading.Timer(0.2, held.go.set).start()
    assert manager.update_best_model({"error": 2}, {"epoch": 2}, filled(2)) == {}
    assert load(tmp_path / "best_error.pth")["metadata"]["epoch"] == 1


@pytest.mark.parametrize("in_background", [True, False])
def test_an_old_epoch_goes_when_the_new_one_is_there_and_not_before(tmp_path, full, in_background):
    manager = CheckpointManager(tmp_path, 1, in_background=in_background)
    found = []
    for epoch in (1, 2, 3):
        full.update({"epoch-2.pth"})
        try:
            manager.save_checkpoint(f"epoch-{epoch}.pth", {"epoch": epoch}, filled(epoch))
            manager.join()
        except FolderError:
            assert epoch == 2
        found.append((sorted(path.name for path in tmp_path.glob("*.pth")), manager.state_dict()["saved_checkpoints"]))
    assert found == [([name], [name]) for name in ("epoch-1.pth", "epoch-1.pth", "epoch-3.pth")]


def test_an_epoch_without_a_file_takes_no_place_among_the_best(tmp_path, full):
    manager = CheckpointManager(tmp_path, 1, keep_best=1)
    manager.add_metric("score")
    full.update({"epoch-2.pth", "best_score.pth"})
    for epoch, score in enumerate([0.5, 0.9, 0.1, 0.2], start=1):
        try:
            manager.save_checkpoint(f"epoch-{epoch}.pth", {"epoch": epoch}, filled(epoch))
        except FolderError:
            assert epoch == 2
        manager.update_best_model({"score": score}, {"epoch": epoch}, filled(epoch))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch-1.pth", "epoch-4.pth"]


def test_a_file_that_cannot_be_removed_stops_nothing_and_is_tried_again(tmp_path):
    manager = CheckpointManager(tmp_path, 1)
    manager.save_checkpoint("epoch-1.pth", {}, filled(1))
    (tmp_path / "epoch-1.pth").rename(tmp_path / "aside")
    (tmp_path / "epoch-1.pth").mkdir()
    manager.save_checkpoint("epoch-2.pth", {}, filled(2))
    assert manager.state_dict()["saved_checkpoints"] == ["epoch-1.pth", "epoch-2.pth"]
    (tmp_path / "epoch-1.pth").rmdir()
    (tmp_path / "aside").rename(tmp_path / "epoch-1.pth")
    manager.clean_checkpoints()
    assert [path.name for path in tmp_path.iterdir()] == ["epoch-2.pth"]


def test_a_best_score_whose_file_is_gone_does_not_count_after_a_resume(tmp_path):
    def run(scores, **trainer):
        toy = Failing(settings(tmp_path, max_epoch=len(scores), **trainer))
        toy.scores, toy.fail, toy.heal = scores, lambda: None, lambda: None
        toy.run_all()
        return load(tmp_path / "checkpoints" / "checkpoint.pth")["ckpt_manager"]["best_scores"]["score"]["score"]

    assert run((0.9,)) == 0.9
    (tmp_path / "checkpoints" / "best_score.pth").unlink()
    assert run((0.9, 0.5), resume=True) == 0.5
    assert load(tmp_path / "checkpoints" / "best_score.pth")["metadata"]["epoch"] == 2


# ------------------------------------------------------------------------------------------- loading


@pytest.mark.parametrize("async_save", [True, False])
@pytest.mark.parametrize("is_absolute", [True, False])
def test_loading_a_file_whose_last_save_failed_is_an_error_once(tmp_path, full, async_save, is_absolute):
    toy = ToyEpochTrainer(settings(tmp_path, async_save=async_save))
    name = str(tmp_path / "checkpoints" / "snap.pth") if is_absolute else "snap.pth"
    nn.init.constant_(toy.model.weight, 1.0)
    toy.save("snap.pth")
    toy.finish_saving()
    full.add("snap.pth")
    nn.init.constant_(toy.model.weight, 2.0)
    toy.save("snap.pth")
    with pytest.raises(CheckpointError, match=r"snap\.pth' has failed: .*No space left.* older one, of .* once more"):
        toy.load(name)
    assert toy.model.weight[0, 0] == 2.0
    toy.load(name)
    assert toy.model.weight[0, 0] == 1.0


def test_loading_what_was_never_written_names_the_failure_and_saving_again_heals_it(tmp_path, full):
    manager = CheckpointManager(tmp_path, in_background=True)
    full.add("a.pth")
    manager.save_checkpoint("a.pth", {}, filled(1))
    with pytest.raises(CheckpointError, match=r"No space left.*There is no older file of this name; save again"):
        manager.read("a.pth")
    manager.save_checkpoint("a.pth", {}, filled(1))
    manager._writer.wait()
    full.clear()
    manager.save_checkpoint("a.pth", {}, filled(2))
    assert manager.read("a.pth")[1]["model"]["weight"][0, 0] == 2


def test_reading_another_file_does_not_swallow_the_failure_of_the_last_save(tmp_path, full):
    manager = CheckpointManager(tmp_path / "run", in_background=True)
    manager.save_checkpoint("a.pth", {}, filled(1))
    full.add("b.pth")
    manager.save_checkpoint("b.pth", {}, filled(1))
    assert manager.read("a.pth")[0] == tmp_path / "run" / "a.pth"
    with pytest.raises(FolderError, match=r"cannot write .*b\.pth"):
        manager.join()


# ------------------------------------------------------------------------------------------- the word "saved"


def save_and_join(manager, name, on_saved):
    manager.save_checkpoint(name, {}, filled(2), on_saved=on_saved)
    manager.join()


@pytest.mark.parametrize("in_background", [True, False])
def test_on_saved_is_called_when_the_file_is_there_and_never_when_it_is_not(tmp_path, full, in_background):
    manager, found = CheckpointManager(tmp_path, in_background=in_background), []
    save_and_join(manager, "a.pth", lambda: found.append((tmp_path / "a.pth").exists()))
    full.add("a.pth")
    with pytest.raises(FolderError, match="No space left"):
        save_and_join(manager, "a.pth", lambda: found.append("again"))
    assert found == [True]
