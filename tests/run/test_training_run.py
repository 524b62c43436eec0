"""A run that goes on in the same process after something has failed."""

import json

import numpy as np
import pytest
import torch

from tests.toys import Rows, ToyEpochTrainer, ToyIterTrainer, rows_loader, settings
from vision3d_engine import CheckpointError, build_dataloader


@pytest.mark.parametrize("kind", [ToyEpochTrainer, ToyIterTrainer])
@pytest.mark.parametrize("moment", ["before_val_epoch", "after_val_step", "after_train_epoch"])
def test_after_a_failure_behind_the_training_its_means_are_still_there(kind, moment, tmp_path):
    straight = kind(settings(tmp_path / "straight"))
    straight.after_train_epoch = lambda epoch, summary_dict: expected.append(dict(summary_dict))
    expected = []
    straight.run()

    found, failures = [], iter([ValueError("boom")])

    class Fails(kind):
        def after_train_epoch(self, epoch, summary_dict):
            found.append(dict(summary_dict))

    def fail_once(*_):
        for failure in failures:
            raise failure

    toy = Fails(settings(tmp_path / "fails"))
    toy.add_hook(type("Once", (), {moment: staticmethod(fail_once)})())
    with pytest.raises(ValueError, match="boom"):
        toy.run()
    toy.run()
    assert found == expected * 2
    assert toy.total_steps == straight.total_steps


@pytest.mark.parametrize("moment", ["before_train_epoch", "before_train_step", "after_backward", "after_train_step"])
def test_a_checkpoint_is_not_loaded_into_an_epoch_that_is_trained(moment, tmp_path):
    toy = ToyEpochTrainer(settings(tmp_path, max_epoch=3))

    def load(epoch, *_):
        if epoch == 2:
            toy.load("epoch-1.pth")

    toy.add_hook(type("Loads", (), {moment: staticmethod(load)})())
    with pytest.raises(CheckpointError, match=r"load\('epoch-1\.pth'\) in the training of epoch 2.*load_weights\(\)"):
        toy.run()


@pytest.mark.parametrize("moment", ["after_train_epoch", "after_val_epoch"])
def test_a_checkpoint_that_is_loaded_behind_the_training_is_gone_on_from(moment, tmp_path):
    toy = ToyEpochTrainer(settings(tmp_path, max_epoch=3, log_steps=1))
    loads = iter([1])

    def load(epoch, *_):
        if epoch == 2 and next(loads, None):
            toy.load("epoch-1.pth")

    toy.add_hook(type("Loads", (), {moment: staticmethod(load)})())
    straight = ToyEpochTrainer(settings(tmp_path / "straight", max_epoch=3))
    straight.run()
    toy.run()
    assert toy.total_steps == straight.total_steps
    assert torch.equal(toy.model.weight, straight.model.weight)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kind", [ToyEpochTrainer, ToyIterTrainer])
def test_what_a_validation_step_draws_is_the_same_after_a_resume_and_with_any_workers(kind, workers, tmp_path):
    class Noisy(kind):
        def val_step(self, epoch, iteration, data_dict):
            output_dict, result_dict = super().val_step(epoch, iteration, data_dict)
            return output_dict, result_dict | {"noise": torch.rand(())}

        def after_val_epoch(self, epoch, summary_dict):
            self.noise = {**getattr(self, "noise", {}), epoch: float(summary_dict["noise"])}

    def ran(folder, count, **options):
        persistent = {"num_workers": count, "persistent_workers": count > 0}
        loader = build_dataloader(Rows(6), 2, **persistent)
        toy = Noisy(settings(folder, **options), rows_loader(6), loader)
        toy.run()
        return toy

    straight = ran(tmp_path / "straight", 0, max_epoch=3)
    ran(tmp_path / "resumed", workers, max_epoch=1)
    resumed = ran(tmp_path / "resumed", workers, max_epoch=3, resume=True)
    assert resumed.noise == {epoch: straight.noise[epoch] for epoch in (2, 3)}


def test_an_index_of_numpy_or_a_tensor_costs_no_other_row(tmp_path):
    class Writes(ToyEpochTrainer):
        def after_train_step(self, *args):
            super().after_train_step(*args)
            self.write_event("mine", {"v": 1}, np.int64(self.total_steps))
            self.write_event("mine", {"v": 1}, torch.tensor(self.total_steps))

    Writes(settings(tmp_path, log_steps=1)).run()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["phase"] == "mine"] == [1, 1, 2, 2, 3, 3]
    assert [row["step"] for row in rows if row["phase"] == "train"] == [1, 2, 3]


@pytest.mark.parametrize("as_tensor", [True, False])
def test_a_metric_that_selects_models_and_is_nan_is_said_once_with_the_first_batch_that_made_it_so(
    tmp_path, capsys, as_tensor
):
    class Unmeasured(ToyEpochTrainer):
        def val_step(self, epoch, iteration, data_dict):
            recall = float("nan") if iteration == 2 else 1.0
            return {}, {"recall": torch.tensor(recall) if as_tensor else recall}

    toy = Unmeasured(settings(tmp_path, max_epoch=2), rows_loader(8), rows_loader(6))
    toy.save_best_model_on_metric("recall")
    toy.run()
    said = capsys.readouterr().err
    assert said.count("the metric 'recall', which selects best models, is NaN in epoch 1") == 1
    assert ("from batch 2 of this process on" in said) is as_tensor
    assert said.count("which selects best models, is NaN") == 1
