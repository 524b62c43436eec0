"""The order of the testers' hook calls, and what the steps are given."""

from pathlib import Path

import pytest
import torch

from tests.toys import ToyBatchTester, ToySingleTester, save_weights, settings
from vision3d_engine import CheckpointError, DataError


def test_the_single_tester_calls_every_step_for_every_batch(tmp_path):
    save_weights(tmp_path)
    toy = ToySingleTester(settings(tmp_path))
    toy.run()
    expected = [("before_test_epoch",)]
    for iteration in (1, 2, 3):
        names = ("before_test_step", "test_step", "eval_step", "after_test_step")
        expected += [(name, iteration) for name in names]
    assert toy.calls == [*expected, ("after_test_epoch",)]


def test_the_batch_tester_evaluates_case_by_case(tmp_path):
    save_weights(tmp_path)
    toy = ToyBatchTester(settings(tmp_path))
    toy.run()
    expected, case = [("before_test_epoch",)], 0
    for iteration, size in ((1, 2), (2, 2), (3, 1)):
        expected += [("before_test_step", iteration), ("test_step", iteration)]
        for _ in range(size):
            case += 1
            expected += [("eval_step", case), ("after_test_step", case)]
    assert toy.calls == [*expected, ("after_test_epoch",)]


def test_the_batch_tester_hands_the_single_case_to_eval_step_and_after_test_step(tmp_path):
    save_weights(tmp_path)
    shapes = []

    class Shapes(ToyBatchTester):
        def eval_step(self, iteration, data_dict, output_dict):
            shapes.append((tuple(data_dict["x"].shape), tuple(output_dict["prediction"].shape)))
            return super().eval_step(iteration, data_dict, output_dict)

        def after_test_step(self, iteration, data_dict, output_dict, result_dict):
            shapes.append((tuple(data_dict["x"].shape), tuple(output_dict["prediction"].shape)))

    Shapes(settings(tmp_path)).run()
    assert set(shapes) == {((3,), ())}
    assert len(shapes) == 10


def test_the_summary_is_the_mean_over_cases_not_over_batches(tmp_path):
    model = save_weights(tmp_path)
    toy = ToyBatchTester(settings(tmp_path))
    toy.run()
    rows = toy.test_loader.dataset
    expected = (model(rows.x)[:, 0] - rows.y).abs().mean().item()
    assert toy.summary["mae"] == pytest.approx(expected, abs=1e-12)


def test_a_test_step_runs_without_gradients_and_may_turn_them_on(tmp_path):
    save_weights(tmp_path)
    seen = []

    class WithGradients(ToySingleTester):
        def test_step(self, iteration, data_dict):
            seen.append(torch.is_grad_enabled())
            torch.set_grad_enabled(True)
            prediction = self.model(data_dict["x"])[:, 0]
            seen.append(prediction.requires_grad)
            return {"prediction": prediction.detach()}

    WithGradients(settings(tmp_path)).run()
    assert seen == [False, True] * 3
    assert torch.is_grad_enabled()


def test_packed_clouds_of_a_nested_batch_are_evaluated_one_by_one(tmp_path):
    save_weights(tmp_path)
    found = []

    class Packed(ToyBatchTester):
        def test_step(self, iteration, data_dict):
            return {"scores": data_dict["scan"]["coord"] * 2}

        def eval_step(self, iteration, data_dict, output_dict):
            found.append((data_dict["scan"]["coord"].tolist(), output_dict["scores"].tolist(), data_dict["name"]))
            return {"points": len(output_dict["scores"])}

    toy = Packed(settings(tmp_path))
    scan = {"coord": torch.arange(5), "offset": torch.tensor([3, 5])}
    toy.register_loader([{"scan": scan, "name": ["a", "b"]}])
    toy.run()
    assert found == [([0, 1, 2], [0, 2, 4], "a"), ([3, 4], [6, 8], "b")]


def test_a_batch_that_cannot_be_split_stops_the_test_with_the_path(tmp_path):
    save_weights(tmp_path)
    toy = ToyBatchTester(settings(tmp_path))
    toy.register_loader([{"x": torch.zeros(2, 3).double(), "graph": {"edges": object()}}])
    with pytest.raises(DataError, match=r"data_dict\['graph'\]\['edges'\]: .* or override split_batch_dict"):
        toy.run()


def test_a_split_of_ones_own_replaces_the_default(tmp_path):
    save_weights(tmp_path)

    class Halves(ToyBatchTester):
        def split_batch_dict(self, iteration, data_dict, output_dict):
            parts = [{"y": y} for y in data_dict["y"]]
            return parts, [{"prediction": p} for p in output_dict["prediction"]]

    toy = Halves(settings(tmp_path))
    toy.run()
    assert toy.calls.count(("eval_step", 5)) == 1


def test_the_log_line_uses_the_testers_own_string(tmp_path):
    save_weights(tmp_path)

    class Worded(ToySingleTester):
        def get_log_string(self, iteration, data_dict, output_dict, result_dict):
            assert isinstance(result_dict["mae"], float)
            return f"case {iteration} is done"

    toy = Worded(settings(tmp_path, log_steps=2))
    log_file = toy.log_file
    toy.run()
    text = Path(log_file).read_text()
    assert "iter: 2/3, case 2 is done, time: " in text
    assert "case 1 is done" not in text


def test_no_checkpoint_is_an_error_that_lists_those_there_are(tmp_path):
    save_weights(tmp_path)
    toy = ToySingleTester(settings(tmp_path), checkpoint=None)
    with pytest.raises(CheckpointError, match=r"--checkpoint PATH or --test_epoch N.*weights\.pth"):
        toy.run()


def test_a_checkpoint_is_found_by_absolute_path_by_path_from_here_and_by_name(tmp_path, monkeypatch):
    save_weights(tmp_path)
    monkeypatch.chdir(tmp_path)
    absolute = str(tmp_path / "checkpoints" / "weights.pth")
    for checkpoint in (absolute, "checkpoints/weights.pth", "weights.pth"):
        ToySingleTester(settings(tmp_path), checkpoint=checkpoint).run()


def test_a_first_batch_without_a_case_needs_no_log_line(tmp_path):
    save_weights(tmp_path)

    class Filtering(ToyBatchTester):
        def split_batch_dict(self, iteration, data_dict, output_dict):
            return ([], []) if iteration == 1 else super().split_batch_dict(iteration, data_dict, output_dict)

    toy = Filtering(settings(tmp_path, log_steps=1))
    toy.run()
    assert [call for call in toy.calls if call[0] == "eval_step"] == [("eval_step", case) for case in (1, 2, 3)]


def test_a_test_runs_in_the_precision_of_the_training_and_is_evaluated_in_full(tmp_path):
    seen = []

    class Tester(ToySingleTester):
        def test_step(self, iteration, data_dict):
            return {"error": torch.ones(2, 2) @ torch.ones(2, 2)}

        def eval_step(self, iteration, data_dict, output_dict):
            seen.append((output_dict["error"].dtype, (torch.ones(2, 2) @ torch.ones(2, 2)).dtype))
            return {"error": output_dict["error"].mean()}

    save_weights(tmp_path)
    Tester(settings(tmp_path, precision="bf16")).run()
    assert set(seen) == {(torch.bfloat16, torch.float32)}


def test_a_test_ends_with_its_summary_its_cases_the_checkpoint_and_its_time(tmp_path):
    save_weights(tmp_path)
    toy = ToyBatchTester(settings(tmp_path))
    log_file = toy.log_file
    toy.run()
    head, *lines = Path(log_file).read_text().rpartition(" | SUCCESS | ")[2].splitlines()
    assert head == "test ended: 5 cases"
    found = dict(line.split() for line in lines if "folder" not in line)
    assert found.keys() == {"mae", "checkpoint", "time"}
    assert float(found["mae"]) == pytest.approx(toy.summary["mae"], abs=1e-3)
    assert found["checkpoint"] == str(tmp_path / "checkpoints" / "weights.pth")


def test_a_loop_of_a_scripts_own_ends_without_the_engines_summary(tmp_path):
    save_weights(tmp_path)

    class Own(ToyBatchTester):
        def test_epoch(self):
            self.log("mine")

    toy = Own(settings(tmp_path))
    log_file = toy.log_file
    toy.run()
    assert "test ended" not in Path(log_file).read_text()
