"""Numbers and lines of a run on their way into files: whole, in order, each with its time, also when disks are full."""

import json
import multiprocessing
import os
import pydoc
import signal
import subprocess
import sys
import time
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import Dataset

from tests.toys import Rows, ToyEpochTrainer, rows_loader, settings
from vision3d_engine import FolderInUseError, MetricWriter, RegistrationError, get_logger
from vision3d_engine.core import background
from vision3d_engine.logs.logger import Logger
from vision3d_engine.writers.metric_writers import MetricWriters


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def events(folder):
    accumulator = EventAccumulator(str(folder / "events")).Reload()
    return {tag: [(e.step, e.value) for e in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]}


@pytest.fixture
def slow_thread(monkeypatch):
    """Let nothing be delivered but by a flush or a close."""
    monkeypatch.setattr(background, "_EVERY_S", 600)


@pytest.fixture
def logger(tmp_path):
    logger = Logger(tmp_path / "run.log")
    yield logger
    logger.close()


def running(folder, logger, **options):
    """Return writers of a run that has begun and owns the folder."""
    writers = MetricWriters(folder / "events", folder / "metrics.jsonl", logger, **options)
    with writers.running():
        pass
    writers.take_over()
    return writers


@pytest.fixture
def writers(tmp_path, logger):
    writers = running(tmp_path, logger)
    yield writers
    writers.close()


def test_numbers_are_those_of_the_call_whatever_becomes_of_the_dict(slow_thread, writers, tmp_path):
    values = {"loss": 1.0}
    writers.scalars("train", values, step=1)
    writers.row("train_epoch", values, step=1)
    values |= {"loss": 2.0, "table": torch.eye(2)}
    writers.close()
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


def test_every_line_of_a_run_is_there_once_in_order_with_its_time(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(background, "_EVERY_S", 0.001)
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
            self.before = self._loaders._loaders["training", None]

        def after_train_epoch(self, epoch, summary_dict):
            self.register_loader(rows_loader(8, batch_size=4), self.val_loader)
            self._session.writers.flush()
            self.same = self._loaders._loaders["training", None] is self.before

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
    assert log.read_text().count("iter: ") >= 5  # a warning may have taken later ones along


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
        toy._session.writers.flush()
    toy.run()
    assert [row["phase"] for row in rows(tmp_path)] == ["train", "train_epoch", "val"] * 2


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
            self._session.logger.line(lambda: "waiting line")
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
    writers = running(small_disk, logger)
    writers.scalars("train", {"loss": 1.0}, step=1)
    writers.flush()
    fill(small_disk)
    for step in range(2, 300):
        writers.scalars("train", {"loss": float(step)}, step=step)
        if step % 20 == 0:
            writers.flush()
            writers.positions()
    writers.points("cloud", [np.zeros((5000, 3))], None, step=1)
    writers.flush()
    (small_disk / "filler").unlink()
    writers.scalars("train", {"loss": 1000.0}, step=1000)
    writers.flush()
    assert writers.positions()["metrics_bytes"] == (small_disk / "metrics.jsonl").stat().st_size
    fill(small_disk)
    for step in range(1001, 1200):
        writers.scalars("train", {"loss": 0.0}, step=step)
    writers.close()
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
    writers = running(small_disk, logger)
    fill(small_disk)
    for step in range(5):
        writers.scalars("train", {"loss": 1.0}, step=step)
        writers.flush()
    (small_disk / "filler").unlink()
    writers.scalars("train", {"loss": 2.0}, step=5)
    writers.close()
    assert events(small_disk) == {"train/loss": [(5, 2.0)]}
    assert len(list((small_disk / "events").iterdir())) == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_disk_that_is_fuller_than_it_says_costs_whole_events(small_disk, tmp_path, logger, monkeypatch):
    """As with a quota: the thread of TensorBoard's own writer dies of it, perhaps in the middle of an event."""
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1 << 40))
    writers = running(small_disk, logger)
    writers.scalars("train", {"loss": 1.0}, step=1)
    writers.flush()
    fill(small_disk)
    for step in range(2, 300):
        writers.scalars("train", {"loss": float(step)}, step=step)
        if step % 50 == 0:
            writers.flush()
    writers.flush()
    (small_disk / "filler").unlink()
    writers.scalars("train", {"loss": 1000.0}, step=1000)
    writers.close()
    found = [step for step, _ in events(small_disk)["train/loss"]]
    assert sorted(found) == sorted(set(found))
    assert (min(found), max(found)) == (1, 1000)
    assert len((tmp_path / "run.log").read_text().splitlines()) == 1


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
        for _ in range(2):
            logger.line(lambda: "y" * 100)
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
    logger = Logger(tmp_path / "run.log", is_main=False)
    writers = running(tmp_path, logger, enabled=False)
    writers.scalars("train", {"loss": 1.0}, step=1)
    writers.row("train", {"loss": 1.0})
    logger.line(lambda: pytest.fail("was put together"))
    writers.points("cloud", [np.zeros((2, 3))], None, step=1)
    writers.close()
    assert list(tmp_path.iterdir()) == []


def test_writers_that_were_closed_open_their_files_again(writers, tmp_path):
    for step in (1, 2):
        writers.scalars("train", {"loss": 1.0}, step=step)
        writers.close()
    assert [row["step"] for row in rows(tmp_path)] == [1, 2]
    assert events(tmp_path) == {"train/loss": [(1, 1.0), (2, 1.0)]}


# ------------------------------------------------------------------------------------------- before a run, and resuming


class Early(ToyQuiet):
    """Writes in its constructor, and on an axis of its own; can be killed before a step."""

    dies_at = None

    def __init__(self, cfg, **options):
        super().__init__(cfg, rows_loader(8), **options)
        self.write_event("setup", {"lr": 0.1}, 0)

    def after_train_step(self, epoch, iteration, data_dict, output_dict, result_dict):
        self.write_event("mine", {"samples": 1.0}, self.total_steps * 1000)
        if self.total_steps == self.dies_at:
            self._session.writers.flush()
            os.kill(os.getpid(), signal.SIGKILL)


def steps_of(folder):
    """Return the steps of each curve; sorted, since files of one second are read in the order of their processes."""
    return {tag: sorted(step for step, _ in found) for tag, found in events(folder).items()}


def test_overwriting_puts_the_old_numbers_aside_although_the_constructor_has_written(tmp_path):
    Early(settings(tmp_path, log_steps=1)).run()
    straight = rows(tmp_path)
    Early(settings(tmp_path, log_steps=1, overwrite=True)).run()
    assert [row["phase"] for row in rows(tmp_path)] == [row["phase"] for row in straight]
    assert steps_of(tmp_path)["train/loss"] == [1, 2, 3, 4]
    assert len(list(tmp_path.glob("metrics-*.jsonl"))) == len(list(tmp_path.glob("events-*"))) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("dies_at", [3, 6, 11])
def test_a_killed_and_resumed_run_leaves_the_rows_and_curves_of_an_uninterrupted_one(tmp_path, dies_at):
    """Whatever the axis: training batches, epochs, the user's own."""
    options = {"max_epoch": 3, "log_steps": 1, "save_every": "2 iterations", "async_save": False}
    Early.ran(settings(tmp_path / "straight", **options))

    class Dies(Early):
        pass

    Dies.dies_at = dies_at
    assert killed(lambda: Dies.ran(settings(tmp_path / "broken", **options))) == signal.SIGKILL
    Early.ran(settings(tmp_path / "broken", resume=True, **options))
    assert steps_of(tmp_path / "broken") == steps_of(tmp_path / "straight")
    straight, broken = (
        [(row["phase"], row["step"]) for row in rows(tmp_path / name)] for name in ("straight", "broken")
    )
    assert broken == straight
    assert steps_of(tmp_path / "broken")["mine/samples"] == [1000 * step for step in range(1, 13)]


def test_events_of_a_validation_after_the_checkpoint_are_forgotten(tmp_path):
    """Their axis are epochs, which lie far before the step of the checkpoint."""

    class Breaks(ToyQuiet):
        def val_epoch(self):
            super().val_epoch()
            raise ValueError("boom")

    with pytest.raises(ValueError, match="boom"):
        Breaks(settings(tmp_path, save_every="1 iterations"), rows_loader(8)).run()
    assert steps_of(tmp_path)["val/mae"] == [1]
    ToyQuiet(settings(tmp_path, resume=True), rows_loader(8)).run()
    assert steps_of(tmp_path)["val/mae"] == [1]
    assert [row["phase"] for row in rows(tmp_path)].count("val") == 1


def test_a_run_that_is_refused_leaves_the_numbers_of_the_other_run_alone(tmp_path):
    Early(settings(tmp_path)).run()
    before = rows(tmp_path), steps_of(tmp_path)
    refused = Early(settings(tmp_path))
    with pytest.raises(FolderInUseError):
        refused.run()
    refused._session.writers.close()
    assert (rows(tmp_path), steps_of(tmp_path)) == before


@pytest.mark.parametrize("ending", ["", "raise SystemExit(3)", "del writers; import gc; gc.collect()"])
def test_numbers_of_a_script_that_never_runs_are_written_at_its_end(ending, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, torch\nfrom pathlib import Path\nfrom vision3d_engine import get_logger\n"
        "from vision3d_engine.writers.metric_writers import MetricWriters\nfolder = Path(sys.argv[1])\n"
        "writers = MetricWriters(folder / 'events', folder / 'metrics.jsonl', get_logger())\n"
        "points = torch.ones(1, 5, 3)\nwriters.scalars('train', {'loss': 1.0}, 1)\n"
        f"writers.points('cloud', points, None, 1)\npoints.zero_()\nassert not list(folder.glob('m*'))\n{ending}\n"
    )
    subprocess.run([sys.executable, script, tmp_path], capture_output=True, check=False)
    assert [row["step"] for row in rows(tmp_path)] == [1]
    if sys.version_info[:2] == (3, 12):
        pytest.skip("Python 3.12 starts no thread at its end, as TensorBoard's writer has to; metrics.jsonl has it all")
    assert events(tmp_path) == {"train/loss": [(1, 1.0)]}
    assert EventAccumulator(str(tmp_path / "events")).Reload().Tags()["tensors"]


def test_a_checkpoint_of_an_older_engine_resumes_with_a_step_from_which_on_events_are_forgotten(tmp_path, logger):
    first = running(tmp_path, logger)
    for step in range(1, 5):
        first.scalars("train", {"loss": float(step)}, step)
    first.flush()
    size = first.positions()["metrics_bytes"]
    first.scalars("train", {"loss": 5.0}, 5)
    first.close()
    second = running(tmp_path, logger)
    second.cut_back({"metrics_bytes": size}, 4)
    second.scalars("train", {"loss": 50.0}, 5)
    second.close()
    assert events(tmp_path) == {"train/loss": [*((step, float(step)) for step in range(1, 5)), (5, 50.0)]}
    assert [row["values"]["loss"] for row in rows(tmp_path)] == [1, 2, 3, 4, 50]


def test_going_back_while_files_are_open_cuts_them_and_goes_on(writers, tmp_path):
    writers.scalars("train", {"loss": 1.0}, 1)
    positions = writers.positions()
    foreign = tmp_path / "events" / "events.out.tfevents.1.host.1.0"
    foreign.write_bytes(b"of another program")
    writers.scalars("train", {"loss": 2.0}, 2)
    writers.flush()
    writers.cut_back(positions, 1)
    writers.scalars("train", {"loss": 3.0}, 2)
    writers.close()
    assert foreign.read_bytes() == b"of another program"
    foreign.unlink()
    assert events(tmp_path) == {"train/loss": [(1, 1.0), (2, 3.0)]}
    assert [row["values"]["loss"] for row in rows(tmp_path)] == [1.0, 3.0]


@pytest.mark.parametrize("positions", [{"metrics_bytes": 0, "events": {"none.engine": 0}}, {}])
def test_who_does_not_own_the_folder_cuts_and_renames_nothing(positions, tmp_path, logger):
    owner, reader = running(tmp_path, logger), MetricWriters(tmp_path / "events", tmp_path / "metrics.jsonl", logger)
    owner.scalars("train", {"loss": 1.0}, 2, epoch=1)
    owner.flush()
    for ask in (partial(reader.cut_back, positions, 1), reader.start_anew):
        ask()
        with reader.running():
            pass
        assert [row["values"]["loss"] for row in rows(tmp_path)] == [1.0]
        assert events(tmp_path) == {"train/loss": [(2, 1.0)]}
    owner.close()


def test_without_a_position_the_rows_of_later_batches_go_and_those_of_the_user_before_them_stay(writers, tmp_path):
    writers.scalars("train", {"loss": 1.0}, 4, epoch=1, iteration=4)
    writers.scalars("val", {"loss": 2.0}, 1, epoch=1, total_steps=4)
    writers.scalars("mine", {"loss": 3.0}, 4000)
    writers.row("train_epoch", {"loss": 4.0}, epoch=2, step=8)
    writers.scalars("mine", {"loss": 5.0}, 8000)
    writers.flush()
    writers.cut_back({}, 4)
    assert [row["values"]["loss"] for row in rows(tmp_path)] == [1.0, 2.0, 3.0]


def test_positions_of_another_folder_remove_no_file_here(writers, tmp_path):
    writers.scalars("train", {"loss": 1.0}, 1)
    writers.flush()
    writers.cut_back({"events": {"events.out.tfevents.1.other.1.0.engine": 10}}, 1)
    writers.close()
    assert events(tmp_path) == {"train/loss": [(1, 1.0)]}


# ------------------------------------------------------------------------------------------- trackers and own writers


@pytest.mark.parametrize(
    "patched",
    ["torch.utils.tensorboard.writer.FileWriter", "tensorboard.summary.writer.event_file_writer.EventFileWriter"],
)
def test_a_tracker_that_patches_the_writers_of_torch_or_tensorboard_sees_the_run(patched, tmp_path, monkeypatch):
    owner = pydoc.locate(patched)
    seen, original = [], owner.add_event

    def add_event(self, event, *args, **options):
        seen.append((event.step or args[0] if args else event.step, {value.tag for value in event.summary.value}))
        original(self, event, *args, **options)

    monkeypatch.setattr(owner, "add_event", add_event)
    Early(settings(tmp_path, log_steps=1)).run()
    assert (4, {"train/loss", "train/lr", "train/mae"}) in seen
    assert (1, {"val/mae"}) in seen


class Kept(MetricWriter):
    """Keeps what it is told, and can go back."""

    def __init__(self):
        self.told = []

    def scalars(self, phase, values, step, position, time):
        self.told.append((phase, step, dict(values), dict(position)))

    def position(self):
        return {"count": len(self.told)}

    def cut_back(self, position, step):
        self.told.append(("cut_back", position, step))


def test_a_writer_of_the_user_has_all_numbers_and_takes_part_in_a_resume(tmp_path):
    toy = ToyEpochTrainer(settings(tmp_path, log_steps=3))
    kept = toy.add_writer(Kept())
    toy.write_event("setup", {"x": 1}, 0)
    toy.run()
    assert [(phase, step) for phase, step, *_ in kept.told] == [("setup", 0), ("train", 3), ("val", 1)]
    assert kept.told[1][2].keys() == {"loss", "mae"}
    assert kept.told[1][3].keys() == {"epoch", "iteration", "total_steps", "updates", "samples", "lr"}
    toy = ToyEpochTrainer(settings(tmp_path, resume=True, max_epoch=2, log_steps=3))
    again, other = toy.add_writer(Kept()), toy.add_writer(Kept())
    toy.run()
    assert again.told[0] == ("cut_back", {"count": 3}, 3)
    assert other.told[0] == ("cut_back", None, 3)
    assert [(phase, step) for phase, step, *_ in again.told[1:]] == [("train", 6), ("val", 2)]


def test_a_writer_that_raises_is_said_once_and_costs_its_own_numbers(tmp_path):
    class Broken(MetricWriter):
        def scalars(self, phase, values, step, position, time):
            raise ValueError("no network")

        def close(self):
            raise KeyError("close")

    toy = ToyQuiet(settings(tmp_path, log_steps=1))
    toy.add_writer(Broken())
    kept = toy.add_writer(Kept())
    toy.run()
    text = Path(toy.log_file).read_text()
    assert text.count("Broken.scalars raised ValueError: no network; its numbers are lost") == 1
    assert text.count("| ERROR |") == 1
    assert len(kept.told) == len([row for row in rows(tmp_path) if row["phase"] != "train_epoch"]) == 4


def test_a_writer_must_be_a_metric_writer(tmp_path):
    with pytest.raises(RegistrationError, match="must be a subclass of vision3d_engine"):
        ToyEpochTrainer(settings(tmp_path)).add_writer(print)


def test_who_shows_more_than_the_thread_can_write_waits_for_it(slow_thread, writers):
    """So what waits in memory is never more than a few clouds."""

    class Counts(MetricWriter):
        count = 0

        def points(self, tag, points, colors, step):
            self.count += 1

    writers.add(counts := Counts())
    for step in range(100):
        writers.points("cloud", [np.zeros((10, 3))], None, step)
        assert step - counts.count <= 20


def test_images_figures_histograms_and_texts_reach_tensorboard(writers, tmp_path):
    from matplotlib.figure import Figure

    writers.images("image", torch.rand(2, 3, 8, 8), 1, "NCHW")
    writers.figures("figure", Figure(figsize=(1, 1)), 1)
    writers.histograms("weights", torch.rand(100), 1)
    writers.text("note", "a text", 1)
    writers.close()
    tags = EventAccumulator(str(tmp_path / "events")).Reload().Tags()
    assert set(tags["images"]) == {"image", "figure"}
    assert tags["histograms"] == ["weights"]
    assert tags["tensors"] == ["note"]
