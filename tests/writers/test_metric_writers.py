"""Numbers and lines of a run on their way into files: whole, in order, each with its time, also when disks are full."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import Dataset

from tests.toys import Rows, ToyEpochTrainer, rows_loader, settings
from vision3d_engine import get_logger
from vision3d_engine.loggers import outbox
from vision3d_engine.loggers.board import EventBoard
from vision3d_engine.loggers.console import Logger, set_logger


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def events(folder):
    accumulator = EventAccumulator(str(folder / "events")).Reload()
    return {tag: [(e.step, e.value) for e in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]}


@pytest.fixture
def slow_thread(monkeypatch):
    """Let nothing be delivered but by a flush or a close."""
    monkeypatch.setattr(outbox, "_EVERY_S", 600)


@pytest.fixture
def board(tmp_path):
    board = EventBoard(tmp_path / "events", tmp_path / "metrics.jsonl")
    yield board
    board.close()


@pytest.fixture
def logger(tmp_path):
    logger = Logger(tmp_path / "run.log")
    yield logger
    logger.close()


def test_numbers_are_those_of_the_call_whatever_becomes_of_the_dict(slow_thread, board, tmp_path):
    values = {"loss": 1.0}
    board.write("train", values, step=1)
    board.write_row("train_epoch", values, step=1)
    values |= {"loss": 2.0, "table": torch.eye(2)}
    board.close()
    assert [row["values"] for row in rows(tmp_path)] == [{"loss": 1.0}] * 2
    assert events(tmp_path) == {"train/loss": [(1, 1.0)]}


def test_what_a_user_adds_after_a_training_epoch_never_reaches_the_row_of_the_epoch(tmp_path):
    """It came in between otherwise, depending on when the thread woke up."""

    class Adds(ToyEpochTrainer):
        def after_train_epoch(self, epoch, summary_dict):
            summary_dict["table"] = torch.eye(2)

    Adds(settings(tmp_path, max_epoch=2)).run()
    kept = [row["values"].keys() for row in rows(tmp_path) if row["phase"] == "train_epoch"]
    assert kept == [{"loss", "mae"}] * 2


def test_messages_come_after_the_lines_before_them_and_lines_after_the_messages(slow_thread, board, logger, tmp_path):
    board.speak_through(logger)
    for number in range(3):
        board.write_line(lambda number=number: f"line {number}a")
        board.write_line(lambda number=number: f"line {number}b")
        logger.warn(f"message {number}")
    board.write_line(lambda: "last")
    board.close()
    said = [line.split(" | ")[2] for line in (tmp_path / "run.log").read_text().splitlines()]
    assert said == [
        text for n in range(3) for text in (f"line {n}a", f"line {n}b", f"message {n}")
    ] + ["last"]  # fmt: skip


@pytest.mark.parametrize("count", [1, 3])
def test_each_line_has_the_time_at_which_it_came_and_its_level(
    count, slow_thread, board, logger, tmp_path, monkeypatch
):
    board.speak_through(logger)
    hour = 3600
    real = time.time()
    for number in range(count):
        monkeypatch.setattr("time.time", lambda number=number: real - (9 - number) * hour)
        board.write_line(lambda: "epoch: {1} <red>")
    monkeypatch.undo()
    board.close()
    expected = [time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(real - (9 - n) * hour)) for n in range(count)]
    lines = (tmp_path / "run.log").read_text().splitlines()
    assert lines == [f"{when} | INFO | epoch: {{1}} <red>" for when in expected]


def test_every_line_of_a_run_is_there_once_in_order_with_its_time(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(outbox, "_EVERY_S", 0.001)
    log = Path(ToyQuiet.ran(settings(tmp_path, max_epoch=4, log_steps=1), rows_loader(20)).log_file).read_text()
    lines = [line for line in log.splitlines() if "iter: " in line]
    positions = [
        tuple(int(part.split("/")[0].split(": ")[1]) for part in line.split(" | ")[2].split(", ")[:2]) for line in lines
    ]
    assert positions == [(epoch, iteration) for epoch in range(1, 5) for iteration in range(1, 11)]
    times = [time.strptime(line.split(" | ")[0], "%Y-%m-%d %H:%M:%S") for line in log.splitlines() if " | " in line]
    assert all(a <= b for a, b in pairwise(times))
    heard = [line for line in capfd.readouterr().err.splitlines() if "iter: " in line]
    assert len(heard) == 40
    order = [next((word for word in ("iter: ", "[Train]", "[Val]") if word in line), None) for line in log.splitlines()]
    assert [word for word in order if word] == (["iter: "] * 10 + ["[Train]", "[Val]"]) * 4


class ToyQuiet(ToyEpochTrainer):
    """Has the engine's own way of logging."""

    log = ToyEpochTrainer.__mro__[2].log

    @classmethod
    def ran(cls, *args):
        toy = cls(*args)
        toy.run()
        return toy


def test_the_speed_in_a_line_is_that_of_the_loader_of_its_step(slow_thread, tmp_path):
    """The thread asks nothing of the trainer, which may have another loader by then."""

    class Exchanges(ToyQuiet):
        def after_train_step(self, epoch, iteration, data_dict, output_dict, result_dict):
            super().after_train_step(epoch, iteration, data_dict, output_dict, result_dict)
            self.before = self._source

        def after_train_epoch(self, epoch, summary_dict):
            self.register_loader(rows_loader(8, batch_size=4), self.val_loader)
            self._session.events.flush()
            self.same = self._source is self.before

    toy = Exchanges.ran(settings(tmp_path, log_steps=3))
    assert toy.same
    assert "samples/s" in Path(toy.log_file).read_text()


# ------------------------------------------------------------------------------------------- when a run dies


def killed(act):
    """Run a function in a forked process and return the signal that ended it; one that hangs is killed with another."""
    process = multiprocessing.get_context("fork").Process(target=act)
    process.start()
    process.join(60)
    if process.is_alive():
        process.terminate()
        process.join()
    return -process.exitcode


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_killed_run_has_all_that_came_before_its_last_checkpoint(slow_thread, tmp_path):
    class Dies(ToyQuiet):
        def after_train_step(self, epoch, iteration, data_dict, output_dict, result_dict):
            if self.total_steps == 8:
                os.kill(os.getpid(), signal.SIGKILL)

    cfg = settings(tmp_path, max_epoch=3, log_steps=1, save_every="5 iterations", async_save=False)
    assert killed(lambda: Dies.ran(cfg, rows_loader(24))) == signal.SIGKILL
    state = torch.load(tmp_path / "checkpoints" / "checkpoint.pth", weights_only=True)
    assert state["metadata"]["total_steps"] == 5
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3, 4, 5]
    assert [step for step, _ in events(tmp_path)["train/loss"]] == [1, 2, 3, 4, 5]
    (log,) = (tmp_path / "logs").glob("*.log")
    assert log.read_text().count("iter: ") == 5


def test_a_run_that_an_exception_ends_has_all_its_lines_before_the_error(slow_thread, tmp_path):
    class Breaks(ToyQuiet):
        def before_train_step(self, epoch, iteration, data_dict):
            if iteration == 3:
                raise ValueError("boom")

    toy = Breaks(settings(tmp_path, log_steps=1))
    with pytest.raises(ValueError, match="boom"):
        toy.run()
    assert [row["step"] for row in rows(tmp_path)] == [1, 2]
    said = [line for line in Path(toy.log_file).read_text().splitlines() if "iter: " in line or "boom" in line]
    assert [("iter: 1" in said[0]), ("iter: 2" in said[1]), ("stopped by" in said[2])] == [True] * 3


def test_a_resumed_run_writes_the_rows_of_an_uninterrupted_one(slow_thread, tmp_path):
    def positions(folder):
        return [(row["phase"], row["step"]) for row in rows(folder)]

    class Breaks(ToyEpochTrainer):
        def after_train_step(self, epoch, iteration, data_dict, output_dict, result_dict):
            if self.total_steps == 5:
                raise ValueError("boom")

    options = {"max_epoch": 2, "log_steps": 1, "save_every": "2 iterations"}
    ToyEpochTrainer(settings(tmp_path / "straight", **options), rows_loader(12)).run()
    with pytest.raises(ValueError, match="boom"):
        Breaks(settings(tmp_path / "broken", **options), rows_loader(12)).run()
    ToyEpochTrainer(settings(tmp_path / "broken", resume=True, **options), rows_loader(12)).run()
    assert positions(tmp_path / "broken") == positions(tmp_path / "straight")


@pytest.mark.parametrize("is_delivered", [True, False])
def test_whether_the_thread_was_quick_does_not_change_what_becomes_of_early_numbers(
    slow_thread, tmp_path, is_delivered
):
    """Numbers that a constructor writes, before the run claims its folder."""
    ToyEpochTrainer(settings(tmp_path)).run()
    toy = ToyEpochTrainer(settings(tmp_path, resume=True, max_epoch=2))
    toy.write_event("setup", {"samples": 6}, 0)
    if is_delivered:
        toy._session.events.flush()
    toy.run()
    assert [row["phase"] for row in rows(tmp_path)] == ["train_epoch", "val"] * 2


# ------------------------------------------------------------------------------------------- forked workers


class _Talks(Dataset):
    """Says something in a data worker."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        get_logger().info(f"sample {index}")
        return Rows(4)[index]


def test_data_workers_that_log_hang_nobody_and_write_no_number_twice(slow_thread, tmp_path):
    """Lines and numbers wait in the process from which the workers are forked."""

    class Waits(ToyQuiet):
        def before_train_epoch(self, epoch):
            self._session.events.write_line(lambda: "waiting line")
            self.write_event("waiting", {"x": 1}, epoch)

    loader = torch.utils.data.DataLoader(_Talks(), batch_size=2, num_workers=1)
    toy = Waits.ran(settings(tmp_path, max_epoch=2, log_steps=1), loader)
    log = Path(toy.log_file).read_text()
    assert log.count("waiting line") == 2
    assert log.count("sample ") == 8
    assert [row["phase"] for row in rows(tmp_path)].count("waiting") == 2


# ------------------------------------------------------------------------------------------- full disks


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 200 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(folder)]
    can_mount = sys.platform == "linux" and os.geteuid() == 0
    if not can_mount or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs root and Linux")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder):
    state = os.statvfs(folder)
    (folder / "filler").write_bytes(b"x" * (state.f_bavail * state.f_frsize))


def test_a_full_disk_is_said_once_costs_numbers_but_nothing_raises_and_later_numbers_are_whole(
    small_disk, tmp_path, logger
):
    board = EventBoard(small_disk / "events", small_disk / "metrics.jsonl")
    board.speak_through(logger)
    board.write("train", {"loss": 1.0}, step=1)
    board.flush()
    fill(small_disk)
    for step in range(2, 300):
        board.write("train", {"loss": float(step)}, step=step)
        if step % 20 == 0:
            board.flush()
            board.ends()
    board.write_points("cloud", torch.zeros(1, 5000, 3), None, step=1)
    board.flush()
    (small_disk / "filler").unlink()
    board.write("train", {"loss": 1000.0}, step=1000)
    board.flush()
    assert board.ends() == {"metrics_bytes": (small_disk / "metrics.jsonl").stat().st_size}
    fill(small_disk)
    for step in range(1001, 1200):
        board.write("train", {"loss": 0.0}, step=step)
    board.close()
    steps = [row["step"] for row in rows(small_disk)]
    assert steps == sorted(set(steps))
    assert steps[0] == 1
    assert steps[-1] == 1000
    found = [step for step, _ in events(small_disk)["train/loss"]]
    assert found == sorted(set(found))
    assert found[0] == 1
    assert found[-1] == 1000
    said = (tmp_path / "run.log").read_text().splitlines()
    assert len(said) == 1
    assert said[0].endswith("| ERROR | cannot write numbers of the run: No space left on device; they are lost")


def test_a_full_disk_from_the_first_number_on_leaves_one_event_file(small_disk, tmp_path, logger):
    board = EventBoard(small_disk / "events", small_disk / "metrics.jsonl")
    board.speak_through(logger)
    fill(small_disk)
    for step in range(5):
        board.write("train", {"loss": 1.0}, step=step)
        board.flush()
    (small_disk / "filler").unlink()
    board.write("train", {"loss": 2.0}, step=5)
    board.close()
    assert events(small_disk) == {"train/loss": [(5, 2.0)]}
    assert len(list((small_disk / "events").iterdir())) == 1


def test_a_run_on_a_disk_that_fills_up_to_the_last_byte_trains_to_its_end(small_disk, tmp_path, capfd):
    class Fills(ToyQuiet):
        def before_train_epoch(self, epoch):
            if epoch == 2:
                self._run.checkpoints.join()
                fill(small_disk)

        def after_val_epoch(self, epoch, summary_dict):
            if epoch == 2:
                (small_disk / "filler").unlink()

    toy = Fills.ran(settings(small_disk, max_epoch=3, log_steps=1, save_every="1 iterations"))
    assert toy.total_steps == 9
    assert rows(small_disk)[-1]["epoch"] == 3
    said = capfd.readouterr().err
    assert said.count("cannot write numbers of the run") <= 1
    assert "Traceback" not in said


def test_a_text_log_on_a_full_disk_is_said_once_and_goes_on_when_there_is_space_again(small_disk, capfd):
    logger = Logger(small_disk / "run.log")
    logger.info("first")
    fill(small_disk)
    for _ in range(100):
        logger.info("x" * 100)
        logger.write_lines([(time.time(), "y" * 100)] * 2)
    (small_disk / "filler").unlink()
    logger.info("last")
    logger.close()
    said = capfd.readouterr().err.splitlines()
    assert sum("No space left on device" in line for line in said) == 1
    assert len(said) == 1 + 300 + 2
    kept = (small_disk / "run.log").read_text().splitlines()
    assert kept[0].endswith("| INFO | first")
    assert kept[-1].endswith("| INFO | last")
    assert {line[-100:] for line in kept[1:-1]} <= {"x" * 100, "y" * 100}


def test_numbers_of_processes_other_than_the_main_one_go_nowhere(tmp_path):
    board = EventBoard(tmp_path / "events", tmp_path / "metrics.jsonl", enabled=False)
    board.write("train", {"loss": 1.0}, step=1)
    board.write_row("train", {"loss": 1.0})
    board.write_line(lambda: pytest.fail("was put together"))
    board.write_points("cloud", torch.zeros(1, 2, 3), None, step=1)
    board.close()
    assert list(tmp_path.iterdir()) == []


def test_a_board_that_was_closed_opens_its_files_again(board, tmp_path):
    for step in (1, 2):
        board.write("train", {"loss": 1.0}, step=step)
        board.close()
    assert [row["step"] for row in rows(tmp_path)] == [1, 2]
    assert events(tmp_path) == {"train/loss": [(1, 1.0), (2, 1.0)]}


def test_the_lines_of_a_run_go_to_its_own_logger(slow_thread, tmp_path):
    first, second = Logger(tmp_path / "a.log"), Logger(tmp_path / "b.log")
    boards = [EventBoard(tmp_path / name, tmp_path / f"{name}.jsonl") for name in ("a", "b")]
    for board, logger in zip(boards, (first, second), strict=True):
        board.speak_through(logger)
        board.write_line(lambda logger=logger: Path(logger.log_file).stem)
    set_logger(second)
    for board in boards:
        board.close()
    assert (tmp_path / "a.log").read_text().endswith("| a\n")
    assert (tmp_path / "b.log").read_text().endswith("| b\n")
