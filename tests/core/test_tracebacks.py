"""What an error shows of its way: the user's own lines, the innermost last, and its cause in one line."""

import json
import os
import signal
import traceback
from dataclasses import FrozenInstanceError, dataclass

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from tests.toys import Rows, ToyEpochTrainer, ToySingleTester, linear_model, rows_loader, settings
from vision3d_engine import ResultError, build_dataloader
from vision3d_engine.core.errors import SampleError, WorkerError
from vision3d_engine.core.tracebacks import cause_of


def failed(trainer, kind=Exception):
    """Return the error of a run and its traceback as python prints it."""
    with pytest.raises(kind) as caught:
        trainer.run()
    return caught.value, "".join(traceback.format_exception(caught.value)).splitlines()


def frames(lines):
    return [line.rpartition(", in ")[2] for line in lines if line.startswith("  File ")]


def console(capfd):
    return [line for line in capfd.readouterr().err.splitlines() if "ERROR" in line]


class WrongShape(ToyEpochTrainer):
    def train_step(self, epoch, iteration, data_dict):
        return {}, {"loss": self.model(data_dict["y"]).mean()}


def test_a_shape_error_in_a_step_ends_with_the_line_of_the_step_and_names_the_batch(tmp_path, capfd):
    _, lines = failed(WrongShape(settings(tmp_path)), RuntimeError)
    assert frames(lines) == ["failed", "train_step"]
    assert len(lines) <= 9
    assert lines[-2].startswith("RuntimeError: mat1 and mat2 shapes cannot be multiplied")
    assert lines[-1] == "in training epoch 1, iteration 1, samples 0, 1"
    (line,) = console(capfd)
    assert "stopped by RuntimeError: mat1 and mat2" in line
    assert line.endswith("(in training epoch 1, iteration 1, samples 0, 1)")
    (log,) = tmp_path.glob("logs/*.log")
    assert log.read_text().count("  File ") > 10, "the log has all of it"


def test_who_asks_for_it_sees_the_whole_traceback(tmp_path, monkeypatch):
    monkeypatch.setenv("VISION3D_FULL_TRACEBACK", "1")
    _, lines = failed(WrongShape(settings(tmp_path)), RuntimeError)
    assert len(frames(lines)) > 10
    assert "_iterate" in frames(lines)


def test_an_error_in_a_hook_of_the_validation_ends_with_its_line(tmp_path):
    class Fails(ToyEpochTrainer):
        def val_step(self, epoch, iteration, data_dict):
            return {}, {"mae": data_dict["z"]}

    _, lines = failed(Fails(settings(tmp_path)), KeyError)
    assert frames(lines) == ["failed", "val_step"]
    assert lines[-2:] == ["KeyError: 'z'", "in validation epoch 1, iteration 1, samples 0, 1"]


def test_an_error_in_a_hook_outside_of_steps_says_where_the_run_was(tmp_path):
    class Fails(ToyEpochTrainer):
        def after_train_epoch(self, epoch, summary_dict):
            raise ValueError("no figure")

    _, lines = failed(Fails(settings(tmp_path)), ValueError)
    assert frames(lines) == ["failed", "after_train_epoch"]
    assert lines[-1] == "the run was in train epoch 1, iteration 3"


def test_a_step_of_a_tester_is_shown_in_the_same_way(tmp_path):
    class Fails(ToySingleTester):
        def test_step(self, iteration, data_dict):
            raise ValueError("a bad cloud")

    toy = Fails(settings(tmp_path), rows_loader())
    torch.save(linear_model().state_dict(), tmp_path / "weights.pth")
    _, lines = failed(toy, ValueError)
    assert frames(lines) == ["failed", "test_step"]
    assert lines[-1] == "in test iteration 1, samples 0, 1"


def test_the_names_of_samples_are_said_where_a_batch_has_them(tmp_path):
    class Named(Rows):
        def __getitem__(self, index):
            return super().__getitem__(index) | {"name": f"scene_{index}"}

    _, lines = failed(WrongShape(settings(tmp_path), build_dataloader(Named(6), 2, num_workers=0)), RuntimeError)
    assert lines[-1] == "in training epoch 1, iteration 1, samples 0, 1 (scene_0, scene_1)"


class Bad(Rows):
    def __getitem__(self, index):
        if index == 3:
            raise ValueError("a bad cloud")
        return super().__getitem__(index)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_sample_that_raises_shows_the_line_of_the_data_set_and_the_cause_on_the_console(workers, tmp_path, capfd):
    toy = ToyEpochTrainer(settings(tmp_path), build_dataloader(Bad(6), 2, num_workers=workers))
    error, lines = failed(toy, SampleError)
    assert frames(lines) == ["failed", "__getitem__"]
    assert len(lines) <= 10
    assert "Caught" not in str(error)
    assert str(error).startswith("sample 3 of Bad raised ValueError: a bad cloud (epoch 1, position 3)")
    (line,) = console(capfd)
    assert "stopped by SampleError: sample 3 of Bad raised ValueError: a bad cloud" in line
    (log,) = tmp_path.glob("logs/*.log")
    assert ("Caught SampleError in DataLoader worker process 1" in log.read_text()) == bool(workers)


def test_any_error_of_a_data_worker_keeps_the_users_lines_and_its_kind(tmp_path, capfd):
    def collate(samples):
        return {}["points"]

    toy = ToyEpochTrainer(settings(tmp_path), rows_loader(num_workers=1, collate_fn=collate))
    error, lines = failed(toy, KeyError)
    assert frames(lines) == ["failed", "collate"]
    assert str(error).startswith("'points'\nin DataLoader worker process 0:")
    assert "stopped by KeyError: 'points' (" in console(capfd)[0]


def test_an_error_that_torch_cannot_bring_over_is_named_by_its_own_kind(tmp_path):
    class Bytes(IterableDataset):
        def __len__(self):
            return 4

        def __iter__(self):
            b"\xff".decode()
            yield {}

    toy = ToyEpochTrainer(settings(tmp_path), DataLoader(Bytes(), batch_size=None, num_workers=1))
    error, lines = failed(toy, RuntimeError)
    assert frames(lines) == ["failed", "__iter__"]
    assert cause_of(error).startswith("RuntimeError: UnicodeDecodeError: 'utf-8' codec can't decode byte 0xff")


def test_of_a_result_that_is_refused_no_line_of_the_engine_is_shown(tmp_path):
    class Wrong(ToyEpochTrainer):
        def train_step(self, epoch, iteration, data_dict):
            return {}, {"los": 1}

    _, lines = failed(Wrong(settings(tmp_path)), ResultError)
    assert frames(lines) == ["failed"]
    assert len(lines) <= 6


def test_a_dead_worker_is_told_in_a_few_lines(tmp_path):
    class Dies(Rows):
        def __getitem__(self, index):
            os.kill(os.getpid(), signal.SIGKILL)

    _, lines = failed(ToyEpochTrainer(settings(tmp_path), build_dataloader(Dies(6), 2, num_workers=2)), WorkerError)
    assert frames(lines) == ["failed"]
    assert len(lines) <= 6


def test_an_error_without_a_line_of_the_user_keeps_its_traceback_since_the_engine_may_be_at_fault(tmp_path):
    toy = ToyEpochTrainer(settings(tmp_path))
    toy._context.counters.row = json.JSONDecoder().decode
    _, lines = failed(toy, TypeError)
    assert len(frames(lines)) > 5


def test_errors_that_have_led_to_one_keep_the_users_lines_too(tmp_path):
    class Chained(ToyEpochTrainer):
        def train_step(self, epoch, iteration, data_dict):
            try:
                torch.nn.functional.linear(data_dict["x"], torch.zeros(2))
            except RuntimeError as error:
                raise ValueError("a bad layer") from error

    _, lines = failed(Chained(settings(tmp_path)), ValueError)
    assert frames(lines) == ["train_step", "failed", "train_step"]


class SpeechlessError(Exception):
    def __str__(self):
        raise RuntimeError("no text")


@dataclass(frozen=True)
class FrozenError(Exception):
    code: int


@pytest.mark.parametrize("kind", [SpeechlessError, type("SpeechlessToo", (SpeechlessError, RuntimeError), {})])
def test_an_error_that_cannot_tell_its_text_arrives_as_it_is(tmp_path, capfd, kind):
    class Fails(ToyEpochTrainer):
        def train_step(self, epoch, iteration, data_dict):
            raise kind

    _, lines = failed(Fails(settings(tmp_path)), kind)
    assert frames(lines) == ["failed", "train_step"]
    assert lines[-1] == "in training epoch 1, iteration 1, samples 0, 1"
    assert f"stopped by {kind.__name__}: <exception str() failed> (in training epoch 1" in console(capfd)[0]


def test_a_sample_whose_error_cannot_tell_its_text_is_named(tmp_path):
    class Fails(Rows):
        def __getitem__(self, index):
            raise SpeechlessError

    toy = ToyEpochTrainer(settings(tmp_path), build_dataloader(Fails(6), 2, num_workers=0))
    error, _ = failed(toy, SampleError)
    assert str(error).startswith("sample 0 of Fails raised SpeechlessError: <exception str() failed> (epoch 1")


def test_an_error_that_takes_no_attributes_is_shown_with_its_line_and_its_batch(tmp_path):
    class Fails(ToyEpochTrainer):
        def train_step(self, epoch, iteration, data_dict):
            raise FrozenError(7)

    error, lines = failed(Fails(settings(tmp_path)), FrozenInstanceError)  # by python's own contextlib
    assert error.__context__ == FrozenError(7)
    assert frames(lines)[0] == "train_step"
    assert "in training epoch 1, iteration 1, samples 0, 1" in lines


def test_an_error_of_the_user_that_speaks_like_a_data_worker_keeps_its_text_and_its_arguments(tmp_path):
    text = "Caught ValueError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"

    class Fails(ToyEpochTrainer):
        def train_step(self, epoch, iteration, data_dict):
            raise ValueError(text, 5)

    error, lines = failed(Fails(settings(tmp_path)), ValueError)
    assert error.args == (text, 5)
    assert frames(lines) == ["failed", "train_step"]


class CodedError(Exception):
    def __init__(self, text, code=3):
        super().__init__(text, code)


def test_an_error_of_a_data_worker_keeps_what_else_its_class_gives_it(tmp_path):
    def collate(samples):
        raise CodedError("a bad cloud")

    toy = ToyEpochTrainer(settings(tmp_path), rows_loader(num_workers=1, collate_fn=collate))
    error, _ = failed(toy, CodedError)
    assert error.args[1] == 3
    assert "DataLoader worker process 0:\n" in error.args[0]
    assert "Caught" not in error.args[0]
