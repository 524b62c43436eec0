"""The order of all hook calls, against lists written by hand."""

import json

import pytest

from tests.toys import ToyEpochTrainer, ToyIterTrainer, rows_loader, settings
from vision3d_engine import Hook


def train_iteration(epoch, iteration, *, updates=True, scheduled=False):
    """The calls of one training iteration with a log line after each."""
    names = ["before_train_step", "train_step", "after_backward"]
    calls = [(name, epoch, iteration) for name in names]
    calls += [("optimizer_step",)] if updates else []
    calls += [("after_train_step", epoch, iteration), ("log",)]
    return calls + ([("scheduler_step",)] if scheduled and updates else [])


def validation(epoch):
    calls = [("before_val_epoch", epoch)]
    for iteration in (1, 2):
        calls += [(name, epoch, iteration) for name in ("before_val_step", "val_step", "after_val_step")]
    return [*calls, ("after_val_epoch", epoch)]


def run(kind, folder, **trainer):
    """Run 2 epochs of 3 iterations and return the calls."""
    toy = kind(settings(folder, max_epoch=2, log_steps=1, **trainer))
    toy.run()
    return toy.calls


def epoch_based(updates):
    calls = [("before_train",)]
    for epoch in (1, 2):
        calls.append(("before_train_epoch", epoch))
        for iteration in (1, 2, 3):
            calls += train_iteration(epoch, iteration, updates=iteration in updates)
        calls += [("scheduler_step",), ("after_train_epoch", epoch), *validation(epoch)]
    return [*calls, ("after_train",)]


def iter_based(updates):
    calls = [("before_train",)]
    for epoch in (1, 2):
        calls.append(("before_train_epoch", epoch))
        for iteration in (1, 2, 3):
            calls += train_iteration(epoch, iteration, updates=iteration in updates, scheduled=True)
        calls += [("after_train_epoch", epoch), *validation(epoch)]
    return [*calls, ("after_train",)]


def test_the_epoch_based_pipeline_is_that_of_the_description(tmp_path):
    assert run(ToyEpochTrainer, tmp_path) == epoch_based(updates=(1, 2, 3))


def test_the_epoch_based_pipeline_steps_the_incomplete_last_window(tmp_path):
    assert run(ToyEpochTrainer, tmp_path, grad_acc_steps=2) == epoch_based(updates=(2, 3))


def test_the_iter_based_pipeline_is_that_of_the_description(tmp_path):
    assert run(ToyIterTrainer, tmp_path) == iter_based(updates=(1, 2, 3))


def test_the_iter_based_pipeline_steps_the_incomplete_last_window(tmp_path):
    assert run(ToyIterTrainer, tmp_path, grad_acc_steps=2) == iter_based(updates=(2, 3))


def test_the_iter_based_trainer_starts_the_data_over_as_often_as_needed(tmp_path):
    toy = ToyIterTrainer(settings(tmp_path, num_iters_per_epoch=7))
    toy.run()
    assert [call for call in toy.calls if call[0] == "train_step"] == [("train_step", 1, i) for i in range(1, 8)]


def test_hooks_are_called_right_after_the_trainers_own_methods(tmp_path):
    class Recorder(Hook):
        def before_train_step(self, epoch, iteration, data_dict):
            self.owner.calls.append(("hook.before_train_step", epoch, iteration))

        def after_val_epoch(self, epoch, summary_dict):
            self.owner.calls.append(("hook.after_val_epoch", epoch))

    toy = ToyEpochTrainer(settings(tmp_path))
    toy.add_hook(Recorder())
    toy.run()
    for moment in ("before_train_step", "after_val_epoch"):
        places = [index for index, call in enumerate(toy.calls) if call[0] == moment]
        assert places
        assert all(toy.calls[place + 1][0] == f"hook.{moment}" for place in places)


def test_any_object_with_methods_named_like_moments_is_a_hook(tmp_path):
    class Plain:
        epochs: list = []  # noqa: RUF012

        def after_train_epoch(self, epoch, summary_dict):
            self.epochs.append(epoch)

    toy = ToyEpochTrainer(settings(tmp_path, max_epoch=2))
    hook = toy.add_hook(Plain())
    toy.run()
    assert hook.epochs == [1, 2]


@pytest.mark.parametrize("kind", [ToyEpochTrainer, ToyIterTrainer])
def test_a_loader_without_a_length_is_walked_to_its_end(kind, tmp_path):
    class Stream:
        def __iter__(self):
            return iter(rows_loader())

    toy = kind(settings(tmp_path, num_iters_per_epoch=3, grad_acc_steps=2, log_steps=1), Stream(), Stream())
    toy.run()
    assert [call[0] for call in toy.calls].count("optimizer_step") == 2
    assert [call[0] for call in toy.calls].count("val_step") == 3


def test_only_validation_validates_once_and_saves_nothing(tmp_path):
    toy = ToyEpochTrainer(settings(tmp_path))
    toy.run(only_validation=True)
    names = [call[0] for call in toy.calls]
    assert "train_step" not in names
    assert names.count("val_step") == 2
    assert not list((tmp_path / "checkpoints").iterdir())


def test_the_model_is_in_training_mode_in_training_and_in_evaluation_mode_in_validation(tmp_path):
    modes = []

    class Modes(ToyEpochTrainer):
        def train_step(self, epoch, iteration, data_dict):
            modes.append(("train", self.model.training))
            return super().train_step(epoch, iteration, data_dict)

        def val_step(self, epoch, iteration, data_dict):
            modes.append(("val", self.model.training))
            return super().val_step(epoch, iteration, data_dict)

    Modes(settings(tmp_path, max_epoch=2)).run()
    assert set(modes) == {("train", True), ("val", False)}


def test_a_subclass_that_forgets_super_in_before_train_breaks_nothing(tmp_path):
    class Forgetful(ToyIterTrainer):
        def before_train(self):
            pass

    toy = Forgetful(settings(tmp_path))
    toy.run()
    assert toy.total_steps == 3


def test_after_log_has_the_means_of_each_log_line_behind_it(tmp_path):
    class Reads(Hook):
        def __init__(self):
            self.found = []

        def after_log(self, epoch, iteration, log_dict):
            assert self.owner.calls[-1] == ("log",)
            self.found.append((epoch, iteration, dict(log_dict)))
            log_dict.clear()  # changes no number that is written

    class Numbered(ToyEpochTrainer):
        def after_train_step(self, epoch, iteration, data_dict, output_dict, result_dict):
            super().after_train_step(epoch, iteration, data_dict, output_dict, result_dict)
            result_dict["number"] = float(iteration)

    toy = Numbered(settings(tmp_path, max_epoch=2, log_steps=2), rows_loader(8))
    hook = toy.add_hook(Reads())
    toy.run()
    assert [place[:2] for place in hook.found] == [(1, 2), (1, 4), (2, 2), (2, 4)]
    assert [log_dict["number"] for *_, log_dict in hook.found] == [1.5, 3.5, 1.5, 3.5]
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["values"] for row in rows if row["phase"] == "train"] == [log_dict for *_, log_dict in hook.found]
