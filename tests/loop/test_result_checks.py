"""What a step may return, and what it is told when it returns something else."""

import numpy as np
import pytest
import torch

from tests.toys import ToyEpochTrainer, rows_loader, settings
from vision3d_engine import DataError, ResultError


def run(folder, change=lambda result: result, loaders=(None, None), **trainer):
    """Run the toy with a changed result dict of its training step, and return it."""

    class Changed(ToyEpochTrainer):
        def train_step(self, epoch, iteration, data_dict):
            output_dict, result_dict = super().train_step(epoch, iteration, data_dict)
            return output_dict, change(result_dict)

        def after_train_epoch(self, epoch, summary_dict):
            self.summary = dict(summary_dict)

    toy = Changed(settings(folder, **trainer), *loaders)
    toy.run()
    return toy


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: {"Loss": r["loss"]}, r"without 'loss' \(its keys: Loss\); did you mean 'Loss'"),
        (lambda r: {"acc": r["mae"]}, r"without 'loss' \(its keys: acc\)"),
        (lambda r: {"loss": r["loss"].detach()}, r"'loss' of train_step .* does not require grad"),
        (lambda r: {"loss": r["loss"].item()}, r"'loss' of train_step .* does not require grad"),
        (lambda r: {"loss": r["loss"] * torch.ones(2)}, r"'loss' .* tensor of shape \(2,\).*use loss.mean\(\)"),
        (lambda r: {**r, "per_point": torch.ones(4, 3)}, r"'per_point' .* shape \(4, 3\).*\['per_point'\].mean\(\)"),
        (lambda r: {**r, "name": "mug"}, r"'name' of train_step is 'mug' \(str\)"),
        (lambda r: {**r, "hits": [1, 2]}, r"'hits' of train_step is a list of 2"),
        (lambda r: {**r, "z": np.zeros((2, 2))}, r"'z' of train_step is an array of shape \(2, 2\)"),
        (lambda r: {**r, "none": None}, r"'none' of train_step is None"),
        (lambda r: {**r, "c": torch.ones((), dtype=torch.complex64)}, r"'c' of train_step is a tensor of shape \(\)"),
        (lambda r: [r], r"train_step returned .*two dicts"),
    ],
)
def test_a_wrong_result_is_an_error_that_names_key_and_fix(change, message, tmp_path):
    with pytest.raises(ResultError, match=message):
        run(tmp_path, change)


def test_numbers_of_every_kind_are_fine(tmp_path):
    def change(result):
        numbers = {"int": 2, "float": 0.5, "bool": True, "np": np.float32(1.5), "array": np.array([2.5])}
        tensors = {"one": torch.tensor([3.0]), "count": torch.tensor(4), "half": torch.tensor(0.5, dtype=torch.float16)}
        return {**result, "loss": result["loss"].reshape(1), **numbers, **tensors}

    summary = run(tmp_path, change).summary
    expected = {"int": 2, "float": 0.5, "bool": 1, "np": 1.5, "array": 2.5, "one": 3, "count": 4, "half": 0.5}
    assert {key: summary[key] for key in expected} == expected


def test_keys_may_differ_from_batch_to_batch_and_the_mean_is_over_those_that_had_them(tmp_path):
    numbers = iter([1.0, 2.0, 4.0])

    def change(result):
        number = next(numbers)
        return {**result, "rare": torch.tensor(number)} if number > 1 else result

    assert run(tmp_path, change).summary["rare"] == 3.0


def test_a_tensor_changed_in_place_after_the_step_does_not_change_the_log(tmp_path):
    counter = torch.zeros(())

    def change(result):
        counter.add_(1)
        return {**result, "count": counter}

    assert run(tmp_path, change).summary["count"] == 2.0


def test_a_step_that_returns_one_dict_is_told_to_return_two(tmp_path):
    class OneDict(ToyEpochTrainer):
        def val_step(self, epoch, iteration, data_dict):
            return {"mae": 1.0}

    with pytest.raises(ResultError, match="val_step returned a dict with the keys mae; it must return two dicts"):
        OneDict(settings(tmp_path)).run()


def test_a_batch_that_is_not_a_dict_is_an_error_that_says_where_to_change_it(tmp_path):
    with pytest.raises(DataError, match=r"the train loader yielded a list of 2; batches must be dicts"):
        run(tmp_path, loaders=([[torch.ones(2), torch.ones(2)]], rows_loader()))


@pytest.mark.parametrize("which", ["training", "validation"])
def test_an_empty_loader_is_an_error_before_anything_runs(which, tmp_path):
    loaders = {"training": [], "validation": rows_loader()} if which == "training" else {"t": rows_loader(), "v": []}
    toy = ToyEpochTrainer(settings(tmp_path))
    toy.register_loader(*loaders.values())
    with pytest.raises(DataError, match=f"the {which} loader is empty"):
        toy.run()


def test_a_loader_without_a_length_that_yields_nothing_is_an_error_too(tmp_path):
    class Nothing:
        def __iter__(self):
            return iter(())

    with pytest.raises(DataError, match="the train loader is empty: it yields no batch"):
        run(tmp_path, loaders=(Nothing(), rows_loader()))


def test_an_unknown_best_metric_is_an_error_that_names_the_nearest_and_loses_nothing(tmp_path):
    toy = ToyEpochTrainer(settings(tmp_path))
    toy.save_best_model_on_metric("mea")
    with pytest.raises(ResultError, match=r"summary has no number 'mea'; did you mean 'mae'\? \(it has: mae\)"):
        toy.run()
    assert sorted(path.name for path in (tmp_path / "checkpoints").glob("c*.pth")) == [
        "checkpoint.prev.pth",
        "checkpoint.pth",
    ]
