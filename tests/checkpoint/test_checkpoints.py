"""What is saved under which name, what stays, and what is refused."""

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.toys import ToyEpochTrainer, ToySingleTester, linear_model, rows_loader, settings
from vision3d_engine import CheckpointError, FolderError, RegistrationError
from vision3d_engine.checkpoint.files import plain_state, read_checkpoint, write_checkpoint
from vision3d_engine.checkpoint.manager import CheckpointManager
from vision3d_engine.checkpoint.retention import best_name, outdated
from vision3d_engine.core.errors import DamagedCheckpointError


def names(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def scored(scores):
    """A toy whose validation of epoch N says scores[N - 1]."""

    class Scored(ToyEpochTrainer):
        def after_val_epoch(self, epoch, summary_dict):
            summary_dict["score"] = scores[epoch - 1]

    return Scored


def test_a_run_leaves_the_files_of_the_description(tmp_path):
    toy = ToyEpochTrainer(settings(tmp_path, max_epoch=2))
    toy.save_best_model_on_metric("mae", largest=False)
    toy.run()
    assert names(tmp_path) == ["best_mae.pth", "checkpoint.prev.pth", "checkpoint.pth", "epoch-1.pth", "epoch-2.pth"]
    state = torch.load(tmp_path / "checkpoints" / "epoch-2.pth", weights_only=True)
    assert state.keys() == {"metadata", "model"}
    assert state["metadata"] == {"epoch": 2, "total_steps": 6, "updates": 6, "samples": 12}
    assert state["model"].keys() == {"weight", "bias"}
    full = torch.load(tmp_path / "checkpoints" / "checkpoint.pth", weights_only=True)
    named = {"metadata", "model", "optimizer", "scheduler", "ckpt_manager"}
    assert full.keys() == named | {
        *(
            "progress",
            "ending",
            "places",
            "orders",
            "moments",
            "metrics",
            "loaders",
            "fingerprint",
            "fingerprints",
            "asked",
            "trained",
            "precision",
            "states",
            "logs",
            "about",
        )
    }


def test_what_a_user_adds_to_the_summary_selects_the_best_model(tmp_path):
    toy = scored([0.1, np.float64(0.9), torch.tensor(0.5)])(settings(tmp_path, max_epoch=3))
    toy.save_best_model_on_metric("score")
    toy.run()
    best = torch.load(tmp_path / "checkpoints" / "best_score.pth", weights_only=True)
    assert best["metadata"]["epoch"] == 2


def test_a_nan_is_never_best_and_never_stays_best(tmp_path):
    toy = scored([float("nan"), 0.2, float("nan")])(settings(tmp_path, max_epoch=3))
    toy.save_best_model_on_metric("score")
    toy.run()
    assert torch.load(tmp_path / "checkpoints" / "best_score.pth", weights_only=True)["metadata"]["epoch"] == 2


def test_the_latest_models_are_kept_and_the_best_is_never_deleted(tmp_path):
    toy = scored([0.9, 0.1, 0.2, 0.3])(settings(tmp_path, max_epoch=4, save_latest_n_models=2))
    toy.save_best_model_on_metric("score")
    toy.run()
    assert names(tmp_path) == ["best_score.pth", "checkpoint.prev.pth", "checkpoint.pth", "epoch-3.pth", "epoch-4.pth"]


def test_retention_names_only_old_epochs_of_its_own():
    files = ["epoch-10.pth", "epoch-9.pth", "epoch-11.pth", "best_x.pth", "epoch-x.pth", "notes.txt"]
    assert outdated(files, 1) == ["epoch-9.pth", "epoch-10.pth"]
    assert outdated(files, 0) == outdated(files, -1) == []
    assert best_name("val/mIoU@0.5 (all)") == "best_val_mIoU@0.5_all_.pth"


def test_metrics_in_letters_of_other_scripts_have_files_of_their_own(tmp_path):
    toy = scored([0.5])(settings(tmp_path))
    toy.after_val_epoch = lambda epoch, summary_dict: summary_dict.update({"准确率": 0.5, "召回率": 0.7})
    for metric in ("准确率", "召回率"):
        toy.save_best_model_on_metric(metric)
    toy.run()
    assert {"best_准确率.pth", "best_召回率.pth"} <= set(names(tmp_path))


def test_metrics_whose_best_models_would_lie_in_one_file_are_refused(tmp_path):
    toy = ToyEpochTrainer(settings(tmp_path))
    toy.save_best_model_on_metric("val/err")
    with pytest.raises(
        RegistrationError, match=r"by 'val/err' and by 'val_err' would both be 'best_val_err\.pth'; rename"
    ):
        toy.save_best_model_on_metric("val_err")


def test_wrappers_leave_no_trace_in_the_keys(tmp_path):
    model = nn.Sequential(torch.compile(linear_model(), backend="eager"))
    CheckpointManager(tmp_path).save_checkpoint("a.pth", {}, torch.compile(model, backend="eager"))
    keys = torch.load(tmp_path / "a.pth", weights_only=True)["model"].keys()
    assert keys == {"0.weight", "0.bias"}
    CheckpointManager(tmp_path).load_checkpoint("a.pth", nn.Sequential(linear_model()))


def test_weights_with_a_wrappers_prefix_load(tmp_path):
    model = linear_model()
    torch.save({"model": {f"module.{key}": value + 1 for key, value in model.state_dict().items()}}, tmp_path / "a.pth")
    CheckpointManager(tmp_path).load_checkpoint("a.pth", model)
    assert model.bias.item() == 1.0


def test_a_checkpoint_of_another_architecture_is_one_readable_report_and_loads_nothing(tmp_path):
    other = nn.Linear(3, 2).double()
    other.head = nn.Linear(2, 1)
    CheckpointManager(tmp_path / "checkpoints").save_checkpoint("weights.pth", {}, other)
    toy = ToySingleTester(settings(tmp_path))
    before = toy.model.weight.clone()
    with pytest.raises(CheckpointError) as caught:
        toy.run()
    text = str(caught.value)
    assert "part 'model' of" in text
    assert "unexpected 'head.weight' (1, 2), 'head.bias' (1,)" in text
    assert "shape differs: 'weight' is (2, 3), the model has (1, 3)" in text
    assert torch.equal(toy.model.weight, before)


def test_an_optimizer_that_does_not_fit_is_named(tmp_path):
    ToyEpochTrainer(settings(tmp_path)).run()
    toy = ToyEpochTrainer(settings(tmp_path, resume=True, max_epoch=2))
    two_groups = [{"params": [toy.model.weight]}, {"params": [toy.model.bias]}]
    toy.optimizer = None
    toy.register_optimizer(torch.optim.SGD(two_groups, lr=0.1))
    with pytest.raises(CheckpointError, match=r"part 'optimizer' of .* does not fit"):
        toy.run()


def test_resuming_from_an_epochs_end_goes_on_as_if_nothing_had_happened(tmp_path):
    """Without random order the straight run is the reference, bit for bit."""
    straight = ToyEpochTrainer(settings(tmp_path / "a", max_epoch=4), rows_loader(12), lr=0.05)
    straight.run()
    ToyEpochTrainer(settings(tmp_path / "b", max_epoch=2), rows_loader(12), lr=0.05).run()
    resumed = ToyEpochTrainer(settings(tmp_path / "b", max_epoch=4, resume=True), rows_loader(12), lr=0.05)
    resumed.run()
    assert torch.equal(straight.model.weight, resumed.model.weight)
    assert (resumed.epoch, resumed.total_steps) == (4, 24)


def test_resuming_in_an_empty_folder_starts_anew_and_says_so(tmp_path):
    toy = ToyEpochTrainer(settings(tmp_path, resume=True))
    log_file = toy.log_file
    toy.run()
    assert "is empty, so the run starts anew" in Path(log_file).read_text()


def test_resuming_where_checkpoint_pth_is_missing_is_an_error_that_lists_what_is_there(tmp_path):
    ToyEpochTrainer(settings(tmp_path)).run()
    for name in ("checkpoint.pth", "checkpoint.prev.pth"):
        (tmp_path / "checkpoints" / name).unlink()
    with pytest.raises(CheckpointError, match=r"--resume found no 'checkpoint.pth' .* only epoch-1\.pth"):
        ToyEpochTrainer(settings(tmp_path, resume=True)).run()


def test_a_checkpoint_without_resume_gives_the_weights_alone(tmp_path):
    first = ToyEpochTrainer(settings(tmp_path / "a"))
    first.run()
    path = tmp_path / "a" / "checkpoints" / "checkpoint.pth"

    class Look(ToyEpochTrainer):
        def before_train(self):
            self.start = (self.epoch, self.model.weight.clone())

    toy = Look(settings(tmp_path / "b", checkpoint=str(path)))
    toy.run()
    assert toy.start[0] == 0
    assert torch.equal(toy.start[1], torch.load(path, weights_only=True)["model"]["weight"])


def test_best_scores_survive_a_resume(tmp_path):
    kind = scored([0.9, 0.5])
    first = kind(settings(tmp_path, max_epoch=1))
    first.save_best_model_on_metric("score")
    first.run()
    second = kind(settings(tmp_path, max_epoch=2, resume=True))
    second.save_best_model_on_metric("score")
    second.run()
    assert torch.load(tmp_path / "checkpoints" / "best_score.pth", weights_only=True)["metadata"]["epoch"] == 1


# ----------------------------------------------------------------------------------------------- files


def test_numpy_values_are_saved_as_plain_ones(tmp_path):
    state = {"score": np.float64(0.5), "count": np.int32(3), "array": np.arange(3), "version": torch.__version__}
    write_checkpoint(tmp_path / "a.pth", state)
    loaded = torch.load(tmp_path / "a.pth", weights_only=True)
    assert (loaded["score"], loaded["count"], type(loaded["version"])) == (0.5, 3, str)


def test_a_value_that_would_not_load_is_refused_by_its_key_path_and_the_old_file_stays(tmp_path):
    path = tmp_path / "a.pth"
    write_checkpoint(path, {"x": 1})
    with pytest.raises(CheckpointError, match=r"state\['a'\]\[1\]\['b'\] is .*object"):
        write_checkpoint(path, {"a": [0, {"b": object()}]})
    assert read_checkpoint(path) == {"x": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.pth"]


def test_plain_state_keeps_what_is_plain():
    state = {"t": torch.ones(2), 3: [1, (2.0, None)], "s": torch.Size([1]), "d": torch.float16}
    assert plain_state(state) == state


def test_a_file_that_would_run_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("run",))

    torch.save({"model": Evil()}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="would run code, so it is refused"):
        read_checkpoint(tmp_path / "a.pth")


@pytest.mark.parametrize("damage", [b"", b"not a zip", None])
def test_a_damaged_file_is_an_error_of_ours(damage, tmp_path):
    path = tmp_path / "a.pth"
    write_checkpoint(path, {"x": torch.ones(1000)})
    path.write_bytes(path.read_bytes()[:2000] if damage is None else damage)
    with pytest.raises(CheckpointError, match=r"a\.pth"):
        read_checkpoint(path)


def test_an_unwritable_folder_is_an_error_that_says_which_setting_to_change(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FolderError, match=r"cannot write into the folder .*set exp\.output_dir"):
        ToyEpochTrainer(settings(tmp_path / "file" / "run"))


def damaged(path, kind, place):
    """Truncate a file, or flip one bit of it, at a place from 0 (its beginning) to 1 (its end)."""
    data = bytearray(path.read_bytes())
    index = min(int(place * len(data)), len(data) - 1)
    if kind == "truncated":
        del data[index:]
    else:
        data[index] ^= 0x10
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("place", [0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99])
@pytest.mark.parametrize("kind", ["truncated", "flipped"])
def test_a_damaged_newest_checkpoint_is_never_loaded_wrongly(kind, place, tmp_path):
    """Either the damage hit bytes that mean nothing, or the one before is used and said so."""
    ToyEpochTrainer(settings(tmp_path, max_epoch=2, save_every="2 iterations")).run()
    intact = torch.load(tmp_path / "checkpoints" / "checkpoint.pth", weights_only=True)
    before = torch.load(tmp_path / "checkpoints" / "checkpoint.prev.pth", weights_only=True)
    damaged(tmp_path / "checkpoints" / "checkpoint.pth", kind, place)

    class Look(ToyEpochTrainer):
        def before_train(self):
            self.is_whole = not self._progress.is_open
            expected = intact if self.is_whole else before
            assert torch.equal(self.model.weight, expected["model"]["weight"])

    toy = Look(settings(tmp_path, max_epoch=2, resume=True))
    log_file = toy.log_file
    toy.run()
    assert kind == "flipped" or not toy.is_whole
    assert ("Going on from 'checkpoint.prev.pth'" in Path(log_file).read_text()) != toy.is_whole
    assert (tmp_path / "checkpoints" / "checkpoint.pth.damaged").exists() != toy.is_whole
    assert torch.equal(toy.model.weight, intact["model"]["weight"])


def test_no_flipped_bit_and_no_cut_is_ever_loaded_as_something_else(tmp_path):
    """Every 11th byte of a small file: what loads is equal to what was saved, all else is refused as damaged."""
    path = tmp_path / "a.pth"
    write_checkpoint(path, {"metadata": {"epoch": 3}, "model": {"weight": torch.arange(12.0)}})
    data, intact = path.read_bytes(), read_checkpoint(path)
    refused = 0
    for index in range(0, len(data), 11):
        flipped = bytearray(data)
        flipped[index] ^= 1 << (index % 8)
        for damage in (bytes(flipped), data[:index]):
            path.write_bytes(damage)
            try:
                found = read_checkpoint(path)
            except DamagedCheckpointError:
                refused += 1
            else:
                assert found["metadata"] == intact["metadata"]
                assert torch.equal(found["model"]["weight"], intact["model"]["weight"])
    assert refused > len(data) // 11


def test_when_no_checkpoint_is_usable_the_run_does_not_start(tmp_path):
    ToyEpochTrainer(settings(tmp_path, max_epoch=2)).run()
    for name in ("checkpoint.pth", "checkpoint.prev.pth"):
        damaged(tmp_path / "checkpoints" / name, "truncated", 0.5)
    with pytest.raises(CheckpointError, match=r"checkpoint\.prev\.pth"):
        ToyEpochTrainer(settings(tmp_path, max_epoch=3, resume=True)).run()


# ----------------------------------------------------------------------------------------------- old files


def old_name(path):
    """Rewrite numpy's module names in a checkpoint to those of 2022."""
    with zipfile.ZipFile(path) as source:
        records = {name: source.read(name) for name in source.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as target:
        for name, record in records.items():
            target.writestr(name, record.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))


def test_a_checkpoint_of_the_2022_engine_resumes(tmp_path):
    """It holds numpy scalars as scores and rates, full paths, and the schedule's function as a dict."""
    model = linear_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=np.float64(0.05))
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0).state_dict()
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    manager = {
        "saved_checkpoints": ["/old/place/epoch-1.pth", "/old/place/best_score.pth"],
        "best_scores": {"score": {"score": np.float32(0.75), "largest": True}},
    }
    state = {
        "metadata": {"epoch": 1, "total_steps": 3},
        "model": {**model.state_dict(), "bias": torch.full((1,), 0.25, dtype=torch.float64)},
        "optimizer": optimizer.state_dict(),
        "scheduler": {**schedule, "_last_lr": [np.float64(0.05)], "lr_lambdas": [{"warmup_steps": 10}]},
        "ckpt_manager": manager,
    }
    torch.save(state, folder / "checkpoint.pth", pickle_protocol=2)
    old_name(folder / "checkpoint.pth")
    (folder / "best_score.pth").write_bytes(b"of score 0.75")
    assert b"numpy.core" in (folder / "checkpoint.pth").read_bytes()
    with pytest.raises(pickle.UnpicklingError):
        torch.load(folder / "checkpoint.pth", weights_only=True)

    class Look(scored([0.0, 0.5])):
        def before_train(self):
            self.start = (self.epoch, self.total_steps, self.model.bias.item(), self.get_lr())

    toy = Look(settings(tmp_path, max_epoch=2, resume=True))
    toy.save_best_model_on_metric("score")
    toy.run()
    assert toy.start == (1, 3, 0.25, 0.05)
    assert (folder / "best_score.pth").read_bytes() == b"of score 0.75"


def test_files_from_before_there_was_metadata_load(tmp_path):
    torch.save({"epoch": 4, "iteration": 40, "model": linear_model().state_dict()}, tmp_path / "a.pth")
    assert CheckpointManager(tmp_path).load_checkpoint("a.pth", linear_model()) == {"epoch": 4, "total_steps": 40}
