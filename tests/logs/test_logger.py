"""Messages and numbers: where they go and how they look."""

import io
import json
import logging
import logging.config
import os
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tqdm import tqdm

from tests.patience import PATIENCE_S
from tests.toys import ToyEpochTrainer, ToyIterTrainer, rows_loader, settings
from vision3d_engine import get_log_string, get_logger
from vision3d_engine.core import background
from vision3d_engine.logs.logger import Logger, set_logger


def events(folder):
    accumulator = EventAccumulator(str(folder / "events")).Reload()
    return {tag: [(e.step, e.value) for e in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]}


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def slow_thread(monkeypatch):
    """Let nothing be written but by a flush or a close."""
    monkeypatch.setattr(background, "_EVERY_S", 600)


@pytest.fixture
def logger(tmp_path):
    logger = Logger(tmp_path / "run.log")
    yield logger
    logger.close()


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
    first, last, summary = (row for row in rows(tmp_path) if row["phase"] != "val")
    assert first["values"]["number"] == 1.5
    assert last["values"]["number"] == 3.0
    assert summary["values"]["number"] == 2.0


def test_the_learning_rate_in_the_line_is_the_one_that_the_step_used(tmp_path):
    used = []

    class Falling(ToyIterTrainer):
        def __init__(self, cfg):
            super().__init__(cfg)
            self.scheduler = None  # the one of the class above
            self.register_scheduler(torch.optim.lr_scheduler.StepLR(self.optimizer, 1, gamma=0.5))

        def optimizer_step(self):
            used.append(self.get_lr())
            super().optimizer_step()

    Falling(settings(tmp_path, log_steps=1)).run()
    assert [row["lr"] for row in rows(tmp_path) if row["phase"] == "train"] == used == [0.1, 0.05, 0.025]


def test_a_run_anew_in_a_used_folder_puts_the_old_json_lines_aside_and_a_resumed_one_goes_on(tmp_path):
    ToyEpochTrainer(settings(tmp_path)).run()
    ToyEpochTrainer(settings(tmp_path, max_epoch=2, resume=True)).run()
    assert [row["epoch"] for row in rows(tmp_path)] == [1, 1, 1, 2, 2, 2]
    ToyEpochTrainer(settings(tmp_path, overwrite=True)).run()
    assert [row["epoch"] for row in rows(tmp_path)] == [1, 1, 1]
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
    assert {"checkpoints", "config.yaml", "env.json", "events", "logs", "metrics.jsonl"} == found
    environment = json.loads((tmp_path / "env.json").read_text())
    assert torch.__version__.startswith(environment["packages"]["torch"])  # which may not name its build
    assert {"command", "seed", "git", "python"} <= environment.keys()
    assert "width: 3" in (tmp_path / "config.yaml").read_text()


def test_the_host_programs_handlers_are_neither_removed_nor_written_to(tmp_path, capfd):
    heard = []
    handler = logging.Handler(1)
    handler.emit = lambda record: heard.append(record.getMessage())
    root = logging.getLogger()
    before = (list(root.handlers), root.level)
    root.addHandler(handler)
    try:
        ToyEpochTrainer(settings(tmp_path)).run()
        logging.getLogger("host").warning("still here")
    finally:
        root.removeHandler(handler)
    assert heard == ["still here"]
    assert (root.handlers, root.level) == before


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


def test_messages_come_after_the_lines_before_them_and_lines_after_the_messages(slow_thread, logger, tmp_path):
    for number in range(3):
        logger.line(lambda number=number: f"line {number}a")
        logger.line(lambda number=number: f"line {number}b")
        logger.warn(f"message {number}")
    logger.line(lambda: "last")
    logger.close()
    said = [line.split(" | ")[2] for line in (tmp_path / "run.log").read_text().splitlines()]
    assert said == [
        text for n in range(3) for text in (f"line {n}a", f"line {n}b", f"message {n}")
    ] + ["last"]  # fmt: skip


@pytest.mark.parametrize("count", [1, 3])
def test_each_line_has_the_time_at_which_it_came_and_its_level(count, slow_thread, logger, tmp_path, monkeypatch):
    hour = 3600
    real = time.time()
    for number in range(count):
        monkeypatch.setattr("time.time", lambda number=number: real - (9 - number) * hour)
        monkeypatch.setattr("time.time_ns", lambda: int(time.time() * 10**9))  # which logging reads since python 3.13
        logger.line(lambda: "epoch: {1} <red>")
    monkeypatch.undo()
    logger.close()
    expected = [time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(real - (9 - n) * hour)) for n in range(count)]
    lines = (tmp_path / "run.log").read_text().splitlines()
    assert lines == [f"{when} | INFO | epoch: {{1}} <red>" for when in expected]


def test_the_lines_of_a_run_go_to_its_own_logger(slow_thread, tmp_path):
    first, second = Logger(tmp_path / "a.log"), Logger(tmp_path / "b.log")
    for logger in (first, second):
        logger.line(lambda logger=logger: Path(logger.log_file).stem)
    set_logger(second)
    for logger in (first, second):
        logger.close()
    assert (tmp_path / "a.log").read_text().endswith("| a\n")
    assert (tmp_path / "b.log").read_text().endswith("| b\n")


def said(folder):
    return [line.split(" | ", 1)[1] for line in (folder / "run.log").read_text().splitlines()]


def test_a_line_that_cannot_be_put_together_costs_itself_only(logger, tmp_path):
    logger.line(lambda: 1 / 0)
    logger.line(lambda: "good")
    logger.info("last")
    assert said(tmp_path) == [
        "INFO | a log line could not be put together: ZeroDivisionError('division by zero')",
        "INFO | good",
        "INFO | last",
    ]


def test_a_line_that_logs_while_it_is_put_together_hangs_nobody(logger, tmp_path):
    def make():
        logger.warn("from inside")
        return "line"

    logger.line(make)
    logger.flush()
    assert sorted(said(tmp_path)) == ["INFO | line", "WARNING | from inside"]


def test_a_message_is_that_of_the_call_and_is_never_called(logger, tmp_path):
    model = torch.nn.ReLU()
    logger.info(model)
    logger.info("100 %s {x}")
    assert said(tmp_path) == ["INFO | ReLU()", "INFO | 100 %s {x}"]


@pytest.mark.parametrize(
    "ending", ["", "raise SystemExit(3)", "raise ValueError", "del logger; import gc; gc.collect()"]
)
def test_what_is_left_at_the_end_of_the_program_or_of_the_logger_is_written(ending, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nfrom vision3d_engine.core import background\nbackground._EVERY_S = 600\n"
        "from vision3d_engine.logs.logger import Logger\nlogger = Logger(sys.argv[1])\n"
        f"logger.line(lambda: 'last words')\nlogger.line(lambda: 'very last')\n{ending}\n"
    )
    done = subprocess.run([sys.executable, script, tmp_path / "run.log"], capture_output=True, text=True, check=False)
    assert said(tmp_path) == ["INFO | last words", "INFO | very last"]
    assert done.stderr.count("last words") == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_many_forks_while_lines_are_written_hang_nobody_and_each_line_is_there_once(logger, tmp_path, monkeypatch):
    monkeypatch.setattr(background, "_EVERY_S", 0.0001)
    for number in range(30):
        logger.line(lambda number=number: f"line {number}")
        pid = os.fork()
        if pid == 0:
            logger.line(lambda number=number: f"child {number}")
            logger.info(f"message {number}")
            logger.flush()
            os._exit(0)
        deadline = time.monotonic() + PATIENCE_S
        while os.waitpid(pid, os.WNOHANG) == (0, 0):
            assert time.monotonic() < deadline or os.kill(pid, 9), "the child hangs"
            time.sleep(0.002)
    logger.close()
    expected = [f"INFO | {what} {number}" for what in ("line", "child", "message") for number in range(30)]
    assert sorted(said(tmp_path)) == sorted(expected)


def test_other_processes_speak_on_the_console_of_errors_only_and_put_no_line_together(capfd):
    logger = Logger(is_main=False)
    logger.line(lambda: pytest.fail("was put together"))
    logger.warn("a warning")
    logger.error("an error")
    logger.flush()
    assert [line.split(" | ", 1)[1] for line in capfd.readouterr().err.splitlines()] == ["ERROR | an error"]


@pytest.mark.parametrize("is_terminal", [True, False])
def test_colours_are_for_terminals_only(is_terminal, tmp_path, monkeypatch):
    heard = io.StringIO()
    heard.isatty = lambda: is_terminal
    monkeypatch.setattr(sys, "stderr", heard)
    logger = Logger(tmp_path / "run.log")
    logger.success("done")
    logger.close()
    assert ("\033[" in heard.getvalue()) == is_terminal
    assert "done" in heard.getvalue()
    assert said(tmp_path) == ["SUCCESS | done"]


@pytest.mark.parametrize("is_terminal", [True, False])
def test_colours_of_a_message_reach_a_terminal_but_no_file(is_terminal, tmp_path, monkeypatch):
    heard = io.StringIO()
    heard.isatty = lambda: is_terminal
    monkeypatch.setattr(sys, "stderr", heard)
    logger = Logger(tmp_path / "run.log")
    logger.info("\033[1;35mviolet\033[0m")
    logger.line(lambda: "\033[1;35mviolet\033[0m later")
    logger.close()
    assert ("\033[1;35mviolet" in heard.getvalue()) == is_terminal
    assert ("\033" in heard.getvalue()) == is_terminal
    assert said(tmp_path) == ["INFO | violet", "INFO | violet later"]


def test_a_progress_bar_stays_whole(tmp_path, monkeypatch):
    heard = io.StringIO()
    monkeypatch.setattr(sys, "stderr", heard)
    logger = Logger()
    with tqdm(total=2, file=heard, ncols=40, mininterval=0) as bar:
        bar.update()
        logger.info("message")
        bar.update()
    lines = [line.rsplit("\r", 1)[-1] for line in heard.getvalue().splitlines()]
    assert [line for line in lines if "message" in line] == [line for line in lines if line.endswith("INFO | message")]


def test_a_host_that_sets_up_its_own_logging_later_does_not_silence_the_run(logger, tmp_path):
    logger.info("before")
    logging.config.dictConfig({"version": 1, "disable_existing_loggers": True})
    logging.disable(logging.CRITICAL)
    try:
        logger.info("after")
    finally:
        logging.disable(logging.NOTSET)
    assert said(tmp_path) == ["INFO | before", "INFO | after"]


def test_get_logger_writes_events_where_it_is_asked_to_and_keeps_its_file(tmp_path):
    first = get_logger(log_file=tmp_path / "run.log")
    second = get_logger(event_dir=tmp_path / "events")
    assert second is not first
    assert second.event_dir == str(tmp_path / "events")
    assert get_logger(tmp_path / "run.log", tmp_path / "events") is get_logger() is second
    second.write_event("loss", 1.5, 3)
    second.info("message")
    second.close()
    assert events(tmp_path) == {"loss": [(3, 1.5)]}
    assert said(tmp_path) == ["INFO | message"]
