"""What single steps have returned: on the disk to the bit, whatever becomes of the run."""

import math

import pytest
import torch

from tests.toys import ToyEpochTrainer, ToyIterTrainer, rows_loader, settings
from vision3d_engine.writers.step_values import StepValuesWriter, recorded_steps


def run(kind, folder, batches=5, **trainer):
    """Train a toy; return what its steps returned by total steps."""
    toy = kind(settings(folder, **trainer), rows_loader(2 * batches, batch_size=2))
    returned = {}

    def note(_epoch, _iteration, _data, _output, results):
        returned[toy.total_steps] = {key: value.item() for key, value in results.items()}

    toy.after_train_step = note
    toy.run()
    return returned


@pytest.mark.parametrize("kind", [ToyEpochTrainer, ToyIterTrainer])
@pytest.mark.parametrize("log_steps", [1, 2, 100])
def test_each_step_of_a_run_is_recorded_to_the_bit(tmp_path, kind, log_steps):
    returned = run(kind, tmp_path, max_epoch=3, log_steps=log_steps)
    assert recorded_steps(tmp_path / "logs" / "steps.jsonl") == returned
    assert sorted(returned) == list(range(1, 16))


def test_a_resume_in_mid_epoch_leaves_each_step_once(tmp_path):
    class StoppedError(Exception):
        pass

    toy = ToyEpochTrainer(
        settings(tmp_path, max_epoch=2, log_steps=3, save_every="2 iterations"), rows_loader(20, batch_size=2)
    )

    def stop(_epoch, iteration, *_):
        if iteration == 7:
            raise StoppedError

    toy.after_train_step = stop
    with pytest.raises(StoppedError):
        toy.run()
    resumed = run(ToyEpochTrainer, tmp_path, 10, max_epoch=2, log_steps=3, save_every="2 iterations", resume=True)
    straight = run(ToyEpochTrainer, tmp_path / "straight", 10, max_epoch=2, log_steps=3)
    assert min(resumed) == 7
    assert recorded_steps(tmp_path / "logs" / "steps.jsonl") == straight
    lines = (tmp_path / "logs" / "steps.jsonl").read_text().splitlines()
    assert len(lines) == len((tmp_path / "straight" / "logs" / "steps.jsonl").read_text().splitlines())


def test_a_loss_that_is_not_finite_is_recorded_although_it_weighs_nothing(tmp_path):
    class Bad(ToyEpochTrainer):
        def train_step(self, epoch, iteration, data_dict):
            output_dict, result_dict = super().train_step(epoch, iteration, data_dict)
            return output_dict, {"loss": result_dict["loss"] * (math.nan if iteration == 2 else 1)}

    Bad(settings(tmp_path, nonfinite="skip"), rows_loader(8, batch_size=2)).run()
    recorded = recorded_steps(tmp_path / "logs" / "steps.jsonl")
    assert [math.isnan(recorded[step]["loss"]) for step in range(1, 5)] == [False, True, False, False]


def test_steps_keep_their_numbers_behind_a_batch_that_was_left_out(tmp_path):
    class Skipping(ToyEpochTrainer):
        def train_step(self, epoch, iteration, data_dict):
            return None if iteration == 2 else super().train_step(epoch, iteration, data_dict)

    Skipping(settings(tmp_path), rows_loader(8, batch_size=2)).run()
    assert sorted(recorded_steps(tmp_path / "logs" / "steps.jsonl")) == [1, 3, 4]


def test_the_file_forgets_its_oldest_lines_and_no_others(tmp_path):
    writer, path = StepValuesWriter(tmp_path / "steps.jsonl", kept_bytes=500), tmp_path / "steps.jsonl"
    for step in range(1, 101):
        writer.step_values(1, 0, [step], ["loss"], [step / 3])
        writer.flush()
        assert path.stat().st_size <= 1000
    writer.close()
    found = recorded_steps(path)
    assert list(found) == list(range(min(found), 101))
    assert all(values == {"loss": step / 3} for step, values in found.items())


def test_a_torn_line_costs_its_own_steps_alone(tmp_path):
    writer, path = StepValuesWriter(tmp_path / "steps.jsonl"), tmp_path / "steps.jsonl"
    for step in (1, 2):
        writer.step_values(1, 0, [step], ["loss"], [float(step)])
    writer.flush()
    writer.close()
    path.write_bytes(path.read_bytes()[:-9])
    assert recorded_steps(path) == {1: {"loss": 1.0}}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_small_types_keep_their_bits(tmp_path, dtype):
    class Cast(ToyEpochTrainer):
        def train_step(self, epoch, iteration, data_dict):
            output_dict, result_dict = super().train_step(epoch, iteration, data_dict)
            return output_dict, {"loss": result_dict["loss"].to(dtype)}

    toy, losses = Cast(settings(tmp_path), rows_loader(8, batch_size=2)), {}
    toy.after_train_step = lambda e, i, d, o, r: losses.update({i: r["loss"].item()})
    toy.run()
    recorded = recorded_steps(tmp_path / "logs" / "steps.jsonl")
    assert {step: values["loss"] for step, values in recorded.items()} == losses
