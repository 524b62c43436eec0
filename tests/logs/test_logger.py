"""Messages and numbers: where they go and how they look."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from loguru import logger as host_logger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.toys import ToyEpochTrainer, ToyIterTrainer, rows_loader, settings
from vision3d_engine import get_log_string, get_logger
from vision3d_engine.loggers.console import Logger


def events(folder):
    accumulator = EventAccumulator(str(folder / "events")).Reload()
    return {tag: [(e.step, e.value) for e in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]}


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_line_has_the_published_format():
    line = get_log_string(
        result_dict={"loss": 2.217, "accuracy": 0.4151},
        epoch=1,
        max_epoch=300,
        iteration=10,
        max_iteration=3000,
        lr=1.03e-3,
        time_dict={"data": 0.146, "model": 0.499},
    )
    assert line == ("epoch: 1/300, iter: 10/3000, loss: 2.217, accuracy: 0.415, lr: 1.030e-03, time: 0.146s/0.499s")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.000"),
        (5e-4, "0.000500"),
        (2e-7, "2.000e-07"),
        (-2.5, "-2.500"),
        (-5e-4, "-0.000500"),
        (3, "3"),
        ("a", "a"),
    ],
)
def test_small_and_negative_numbers_stay_readable(value, text):
    assert get_log_string({"x": value}) == f"x: {text}"


def test_metadata_comes_first_without_its_key():
    assert get_log_string({"x": np.float32(1), "metadata": "scan 7"}) == "scan 7, x: 1.000"


def test_numbers_reach_tensorboard_and_json_lines_with_what_a_user_added(tmp_path):
    class Adds(ToyEpochTrainer):
        def after_val_epoch(self, epoch, summary_dict):
            summary_dict["mIoU"] = 0.5 * epoch
            summary_dict["table"] = torch.eye(2)  # not a number: left out of the logs

    Adds(settings(tmp_path, max_epoch=2, log_steps=3)).run()
    scalars = events(tmp_path)
    assert scalars["val/mIoU"] == [(1, 0.5), (2, 1.0)]
    assert [step for step, _ in scalars["train/loss"]] == [3, 6]
    written = rows(tmp_path)
    assert [row["phase"] for row in written] == ["train", "train_epoch", "val"] * 2
    assert written[0]["step"] == 3
    assert {"epoch", "iteration", "updates", "lr", "time_s", "values"} <= written[0].keys()
    assert written[2]["values"]["mIoU"] == 0.5


def test_a_log_line_holds_the_mean_since_the_last_one(tmp_path):
    class Counted(ToyEpochTrainer):
        def after_train_step(self, epoch, iteration, data_dict, output_dict, result_dict):
            result_dict["number"] = float(iteration)

    Counted(settings(tmp_path, log_steps=2)).run()
    first, summary = (row for row in rows(tmp_path) if row["phase"] != "val")
    assert first["values"]["number"] == 1.5
    assert summary["values"]["number"] == 2.0


def test_the_learning_rate_in_the_line_is_the_one_that_the_step_used(tmp_path):
    used = []

    class Falling(ToyIterTrainer):
        def __init__(self, cfg):
            super().__init__(cfg)
            self.register_scheduler(torch.optim.lr_scheduler.StepLR(self.optimizer, 1, gamma=0.5))

        def optimizer_step(self):
            used.append(self.get_lr())
            super().optimizer_step()

    Falling(settings(tmp_path, log_steps=1)).run()
    assert [row["lr"] for row in rows(tmp_path) if row["phase"] == "train"] == used == [0.1, 0.05, 0.025]


def test_a_run_anew_in_a_used_folder_puts_the_old_json_lines_aside_and_a_resumed_one_goes_on(tmp_path):
    ToyEpochTrainer(settings(tmp_path)).run()
    ToyEpochTrainer(settings(tmp_path, max_epoch=2, resume=True)).run()
    assert [row["epoch"] for row in rows(tmp_path)] == [1, 1, 2, 2]
    ToyEpochTrainer(settings(tmp_path, overwrite=True)).run()
    assert [row["epoch"] for row in rows(tmp_path)] == [1, 1]
    assert len(list(tmp_path.glob("metrics-*.jsonl"))) == 1
    assert len(list(tmp_path.glob("events-*"))) == 1


def test_not_a_number_is_null_in_json_lines(tmp_path):
    class Nan(ToyEpochTrainer):
        def after_val_epoch(self, epoch, summary_dict):
            summary_dict["x"] = float("nan")

    Nan(settings(tmp_path)).run()
    assert rows(tmp_path)[-1]["values"]["x"] is None


def test_one_folder_holds_config_environment_logs_and_events(tmp_path):
    cfg = settings(tmp_path) | {"model": {"width": 3, "act": torch.nn.ReLU}}
    ToyEpochTrainer(cfg).run()
    found = {path.name for path in tmp_path.iterdir()}
    assert {".lock", "checkpoints", "config.yaml", "env.json", "events", "logs", "metrics.jsonl"} == found
    environment = json.loads((tmp_path / "env.json").read_text())
    assert environment["packages"]["torch"] == torch.__version__
    assert {"command", "seed", "git", "python"} <= environment.keys()
    assert "width: 3" in (tmp_path / "config.yaml").read_text()


def test_the_host_programs_sinks_are_neither_removed_nor_written_to(tmp_path, capfd):
    heard = []
    sink = host_logger.add(heard.append, format="{message}")
    ToyEpochTrainer(settings(tmp_path)).run()
    host_logger.info("still here")
    host_logger.remove(sink)
    assert heard == ["still here\n"]


def test_get_logger_stands_alone(tmp_path, capfd):
    logger = get_logger(log_file=tmp_path / "logs" / "a.log")
    logger.info("one {braces}")
    logger.success("two")
    logger.warn("three")
    logger.log("four", level="NOISE")
    assert get_logger() is logger
    text = Path(logger.log_file).read_text()
    assert [line.split(" (levels")[0].split(" | ")[1:] for line in text.splitlines()] == [
        ["INFO", "one {braces}"],
        ["SUCCESS", "two"],
        ["WARNING", "three"],
        [
            "WARNING",
            "unknown log level 'NOISE'; written as INFO",
        ],
        ["INFO", "four"],
    ]
    assert "two" in capfd.readouterr().err


def test_get_logger_in_a_run_is_the_runs_own(tmp_path):
    class Speaks(ToyEpochTrainer):
        def before_train(self):
            get_logger().info("from a library")

    toy = Speaks(settings(tmp_path))
    log_file = toy.log_file
    toy.run()
    assert "from a library" in Path(log_file).read_text()


def test_point_clouds_reach_the_mesh_tab(tmp_path):
    toy = ToyEpochTrainer(settings(tmp_path))
    toy.write_points("clouds", torch.rand(2, 50, 3), torch.zeros(2, 50, 3, dtype=torch.int64), index=1)
    toy.run()
    tags = EventAccumulator(str(tmp_path / "events")).Reload().Tags()["tensors"]
    assert any(tag.startswith("clouds") for tag in tags)


def test_an_error_in_user_code_reaches_the_log_file_and_closes_it(tmp_path):
    class Breaks(ToyEpochTrainer):
        def train_step(self, epoch, iteration, data_dict):
            raise ValueError("boom")

    toy = Breaks(settings(tmp_path))
    log_file = toy.log_file
    with pytest.raises(ValueError, match="boom"):
        toy.run()
    assert "stopped by ValueError: boom" in Path(log_file).read_text()


def test_numbers_are_read_from_the_device_only_when_a_log_line_is_due(tmp_path, monkeypatch):
    """Counts every read of a tensor by the host, in training and validation."""
    reads = []
    for name in ("item", "tolist", "__float__", "cpu", "numpy", "__bool__", "__int__"):
        original = getattr(torch.Tensor, name)

        def counted(self, *args, _original=original, _name=name, **kwargs):
            reads.append((toy.epoch, toy.iteration, _name))
            return _original(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, counted)
    at_step = []

    class Look(ToyEpochTrainer):
        def before_train_step(self, epoch, iteration, data_dict):
            at_step.append(len(reads))

        def after_train_epoch(self, epoch, summary_dict):
            at_step.append(len(reads))

    toy = Look(settings(tmp_path, log_steps=2))

    toy.register_loader(list(rows_loader(8)), list(rows_loader(8)))
    toy.run()
    growth = [b - a for a, b in pairwise(at_step)]
    assert growth[0] == growth[2] == 0
    assert growth[1] >= 1


def test_another_process_than_the_main_one_has_a_file_for_warnings_and_errors_only(tmp_path):
    logger = Logger(tmp_path / "main.log", is_main=False, error_file=tmp_path / "rank1.log")
    logger.info("an ordinary message")
    assert list(tmp_path.iterdir()) == []
    logger.warn("a warning")
    assert (tmp_path / "rank1.log").read_text().endswith("| WARNING | a warning\n")
    assert logger.log_file is None
    logger.close()
