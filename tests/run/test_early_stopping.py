"""A run that ends when a metric of its validations no longer improves."""

import math

import pytest
import torch

from tests.toys import ToyEpochTrainer, settings
from vision3d_engine import ConfigError, Hook, ResultError
from vision3d_engine.run.early_stopping import EarlyStopping

NAN = float("nan")


class KilledError(Exception):
    """What ends a process in these tests."""


class Scores(Hook):
    """Puts numbers into the summaries of validations, and ends the process where it is told to."""

    def __init__(self, scores, kill_at=None):
        self.scores, self.kill_at = scores, kill_at

    def before_val_epoch(self, epoch):
        self._end(epoch, "before")

    def after_val_epoch(self, epoch, summary_dict):
        self._end(epoch, "after")
        summary_dict["score"] = self.scores[epoch - 1]

    def _end(self, epoch, moment):
        if self.kill_at == (epoch, moment):
            raise KilledError


def train(folder, scores, kill_at=None, metric="score", **options):
    options = {"max_epoch": 8, "early_stopping_patience": 2, "early_stopping_mode": "max", **options}
    toy = ToyEpochTrainer(settings(folder, early_stopping_metric=metric, **options))
    toy.add_hook(Scores(scores, kill_at))
    try:
        toy.run()
    except KilledError:
        toy.was_killed = True
    return toy


def by_hand(scores, patience, delta, sign):
    """Return after how many validations a plain loop stops."""
    best, waited = None, 0
    for number, score in enumerate(scores, start=1):
        if not math.isnan(score) and (best is None or sign * (score - best) > delta):
            best, waited = score, 0
        else:
            waited += 1
        if waited == patience:
            return number
    return len(scores)


SCORES = [1.0, 2.0, 1.5, 2.5, 2.6, NAN, 2.4, 3.0]


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("delta", [0, 0.2, 0.5, 5.0])
@pytest.mark.parametrize("patience", [1, 2, 3, 8])
def test_it_stops_where_a_plain_loop_does(mode, delta, patience):
    rule = EarlyStopping("score", mode, patience, delta)
    rule.prepare({})
    validations = 0
    for epoch, score in enumerate(SCORES, start=1):
        rule.judge({"score": score}, epoch)
        validations += 1
        if rule.reason():
            break
    assert validations == by_hand(SCORES, patience, delta, 1 if mode == "max" else -1)


def test_a_run_ends_in_good_order_and_says_the_best_value_and_when_it_was(tmp_path, capsys):
    toy = train(tmp_path, [1.0, 3.0, 2.0, 3.0, 4.0])
    assert toy.epoch == 4
    assert toy.calls[-1] == ("after_train",)
    said = capsys.readouterr().err
    assert said.count("'score' has not improved in 2 validations; the best one was 3 in epoch 2") == 1
    saved = torch.load(tmp_path / "checkpoints" / "checkpoint.pth", weights_only=True)
    assert saved["metadata"]["epoch"] == 4


def test_that_better_numbers_were_not_better_by_enough_is_said():
    rule = EarlyStopping("score", "max", 1, 0.2)
    rule.prepare({})
    rule.judge({"score": 1.0}, 1)
    rule.judge({"score": 1.1}, 2)
    expected = (
        "'score' has not improved by more than 0.2 (early_stopping_min_delta) in 1 validations; the best one was 1 "
    )
    assert rule.reason() == expected + "in epoch 1"


def test_a_resume_with_the_same_settings_ends_at_once_and_with_a_larger_patience_goes_on(tmp_path, capsys):
    scores = [1.0, 3.0, 2.0, 3.0, 2.0, 2.0, 2.0, 2.0]
    train(tmp_path, scores)
    again = train(tmp_path, scores, resume=True)
    assert not [call for call in again.calls if "step" in call[0] or "epoch" in call[0]]
    said = capsys.readouterr().err
    assert "the run is finished, nothing is trained" in said
    assert "--resume with a larger trainer.early_stopping_patience goes on" in said
    longer = train(tmp_path, scores, resume=True, early_stopping_patience=4)
    assert longer.epoch == 6


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("epoch", [2, 3, 4])
def test_a_run_that_is_killed_stops_at_the_same_validation_when_it_is_resumed(epoch, moment, tmp_path):
    scores = [1.0, 3.0, 2.0, NAN, 4.0]
    straight = train(tmp_path / "straight", scores)
    killed = train(tmp_path / "killed", scores, (epoch, moment))
    assert killed.was_killed
    resumed = train(tmp_path / "killed", scores, resume=True)
    assert resumed.epoch == straight.epoch == 4
    assert torch.equal(resumed.model.weight, straight.model.weight)


def test_nan_is_no_improvement_and_is_warned_of(tmp_path, capsys):
    assert train(tmp_path, [NAN, NAN, 5.0]).epoch == 2
    assert "'score', which trainer.early_stopping_metric follows, is NaN in epoch 1" in capsys.readouterr().err


@pytest.mark.parametrize(("largest", "epochs"), [(True, 3), (False, 5)])
def test_the_mode_is_that_in_which_the_metric_selects_best_models(largest, epochs, tmp_path):
    toy = ToyEpochTrainer(settings(tmp_path, max_epoch=5, early_stopping_metric="score", early_stopping_patience=2))
    toy.save_best_model_on_metric("score", largest=largest)
    toy.add_hook(Scores([5.0, 4.0, 3.0, 2.0, 1.0]))
    toy.run()
    assert toy.epoch == epochs


def test_a_metric_without_a_mode_is_refused_before_the_first_step(tmp_path):
    with pytest.raises(ConfigError, match=r"early_stopping_mode is missing.*save_best_model_on_metric\('score'"):
        train(tmp_path, [1.0], early_stopping_mode=None)


def test_a_metric_that_is_not_in_the_summary_is_refused_with_those_that_are(tmp_path):
    with pytest.raises(ResultError, match=r"early_stopping_metric 'scor'.*no number 'scor'; did you mean 'score'"):
        train(tmp_path, [1.0], metric="scor")


def test_settings_of_early_stopping_without_a_metric_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="early_stopping_patience is set, but it does nothing without"):
        train(tmp_path, [1.0], metric=None, early_stopping_mode=None)


def test_the_validation_of_an_epoch_that_was_cut_does_not_count(tmp_path):
    scores = [3.0, 2.0, 1.0, 1.0]
    train(tmp_path / "cut", scores, max_epoch=None, max_updates=5)
    extended = train(tmp_path / "cut", scores, max_epoch=None, max_updates=12, resume=True)
    assert extended.epoch == 3


def test_one_metric_cannot_be_best_in_both_directions(tmp_path):
    toy = ToyEpochTrainer(settings(tmp_path, early_stopping_metric="mae", early_stopping_mode="max"))
    toy.save_best_model_on_metric("mae", largest=False)
    with pytest.raises(ConfigError, match=r"early_stopping_mode is 'max', and save_best.*largest=False.*opposite"):
        toy.run()
