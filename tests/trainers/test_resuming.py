"""What a resumed trainer takes over, what it refuses, and what it does with its folder."""

import json
import multiprocessing
import operator
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from tests.patience import PATIENCE_S
from tests.toys import Rows, ToyEpochTrainer, ToyIterTrainer, rows_loader, settings
from vision3d_engine import (
    CheckpointError,
    FolderError,
    FolderInUseError,
    Hook,
    NonFiniteError,
    RegistrationError,
    build_dataloader,
)


def stopping(kind, at):
    """A trainer whose steps draw random numbers, and that is broken off by an exception after one of them."""

    class Stopping(kind):
        def train_step(self, epoch, iteration, data_dict):
            output_dict, result_dict = super().train_step(epoch, iteration, data_dict)
            noise = torch.rand(()) + np.random.uniform() + random.random()  # noqa: NPY002
            return output_dict, result_dict | {"loss": result_dict["loss"] * noise}

        def after_train_step(self, epoch, iteration, data_dict, output_dict, result_dict):
            super().after_train_step(epoch, iteration, data_dict, output_dict, result_dict)
            self.totals = [*getattr(self, "totals", []), self.total_steps]
            if self.total_steps == at:
                raise OSError(28, "broken off")

        def after_train_epoch(self, epoch, summary_dict):
            super().after_train_epoch(epoch, summary_dict)
            self.summaries = {**getattr(self, "summaries", {}), epoch: dict(summary_dict)}

    return Stopping


def loader(count=23, batch_size=2):
    return build_dataloader(Rows(count), batch_size, num_workers=0, shuffle=True)


def plain(count=23):
    return rows_loader(count, shuffle=True)


def listed(count=23):
    rows = Rows(count)
    return [{"x": rows.x[i : i + 2], "y": rows.y[i : i + 2]} for i in range(0, count, 2)]


class Unsized:
    def __iter__(self):
        return iter(listed())


class StatefulUnsized:
    """Shuffles by a seed of its own, and knows how far it is."""

    epoch = taken = 0

    def __iter__(self):
        order = random.Random(self.epoch).sample(listed(), 12)
        while self.taken < len(order):
            self.taken += 1
            yield order[self.taken - 1]
        self.epoch, self.taken = self.epoch + 1, 0

    def state_dict(self):
        return {"epoch": self.epoch, "taken": self.taken}

    def load_state_dict(self, state):
        self.epoch, self.taken = state["epoch"], state["taken"]


class Stateful(StatefulUnsized):
    def __len__(self):
        return 12


@pytest.mark.parametrize("make", [loader, plain, listed, Unsized, Stateful, StatefulUnsized])
@pytest.mark.parametrize("kind", [ToyEpochTrainer, ToyIterTrainer])
@pytest.mark.parametrize("steps", [1, 3])
def test_a_run_broken_off_anywhere_ends_with_the_same_bits_and_the_same_summaries(kind, make, steps, tmp_path):
    options = {"max_epoch": 3, "grad_acc_steps": steps, "save_every": "2 iterations", "num_iters_per_epoch": 9}
    straight = stopping(kind, None)(settings(tmp_path / "straight", **options), make())
    straight.run()
    for at in (1, 5, 8, 9, 12, 14, 24):
        folder = tmp_path / str(at)
        with pytest.raises(OSError, match="broken off"):
            stopping(kind, at)(settings(folder, **options), make()).run()
        resumed = stopping(kind, None)(settings(folder, **options, resume=True), make())
        resumed.run()
        assert torch.equal(straight.model.weight, resumed.model.weight)
        assert resumed.totals == straight.totals[-len(resumed.totals) :]
        assert len(resumed.totals) < len(straight.totals) or at <= 2 * steps
        for epoch, summary in resumed.summaries.items():
            assert summary == straight.summaries[epoch]
        assert numbers(folder) == numbers(tmp_path / "straight")


def numbers(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "time_s"} for row in rows]


AROUND = (
    "before_train",
    "before_train_epoch",
    "after_train_epoch",
    "before_val_epoch",
    "after_val_epoch",
    "after_train",
)


def drawing(kind, broken_at):
    """A trainer whose hooks around epochs and validations draw random numbers; it ends at one of its moments."""

    class Drawing(kind):
        def draw(self, moment, *args):
            numbers = torch.rand(()).item(), np.random.uniform(), random.random()  # noqa: NPY002
            self.drawn = {**getattr(self, "drawn", {}), (moment, self.epoch if args else 0): numbers}
            self.end_at(moment)

        def end_at(self, moment):
            if broken_at == (moment, self.epoch):
                raise OSError(28, "broken off")

        def after_val_step(self, epoch, iteration, data_dict, output_dict, result_dict):
            self.end_at("after_val_step")

        def after_train_step(self, epoch, iteration, data_dict, output_dict, result_dict):
            self.end_at(f"after_train_step {iteration}")

    for moment in AROUND:
        setattr(Drawing, moment, lambda self, *args, moment=moment: self.draw(moment, *args))
    return Drawing


@pytest.mark.parametrize("make", [loader, plain, listed])
@pytest.mark.parametrize("kind", [ToyEpochTrainer, ToyIterTrainer])
def test_hooks_around_epochs_draw_the_same_after_any_end(kind, make, tmp_path):
    straight = drawing(kind, None)(settings(tmp_path / "straight", max_epoch=3, log_steps=1), make())
    straight.run()
    assert len(set(straight.drawn.values())) == len(straight.drawn) == 3 * 4 + 2
    moments = [*AROUND[1:-1], "after_train_step 5", "after_val_step"]
    for number, at in enumerate((moment, epoch) for moment in moments for epoch in (1, 2)):
        folder = settings(tmp_path / str(number), max_epoch=3, save_every="2 iterations")
        with pytest.raises(OSError, match="broken off"):
            drawing(kind, at)(folder, make()).run()
        torch.manual_seed(number)
        folder["trainer"]["resume"] = True
        resumed = drawing(kind, None)(folder, make())
        resumed.run()
        assert resumed.drawn == {key: straight.drawn[key] for key in resumed.drawn}
        assert torch.equal(straight.model.weight, resumed.model.weight)


class Curriculum:
    level = 0

    def state_dict(self):
        return {"level": self.level}

    def load_state_dict(self, state):
        self.level = state["level"]


class FineTuning(ToyEpochTrainer):
    """In the second epoch the bias is unfrozen, into a group of its own, and the last layer made anew."""

    broken_at = None

    def __init__(self, cfg):
        super().__init__(cfg, rows_loader(8), rows_loader(4))
        self.curriculum = self.register_state("curriculum", Curriculum())
        self.optimizer = None
        self.model.bias.requires_grad_(False)
        self.register_optimizer(torch.optim.SGD([self.model.weight], lr=0.1, momentum=0.9))
        self.register_scheduler(None)

    def before_load(self, metadata):
        if metadata["epoch"] > 2:
            self.unfreeze()

    def before_train_epoch(self, epoch):
        self.curriculum.level += 1
        if epoch == 2:
            self.unfreeze()
            with torch.no_grad():
                self.model.weight.add_(1)

    def unfreeze(self):
        self.model.bias.requires_grad_(True)
        self.optimizer.add_param_group({"params": [self.model.bias], "lr": 0.01})

    def train_step(self, epoch, iteration, data_dict):
        output_dict, result_dict = super().train_step(epoch, iteration, data_dict)
        return output_dict, {"loss": result_dict["loss"] * self.curriculum.level}

    def after_train_step(self, epoch, iteration, *args):
        if (epoch, iteration) == self.broken_at:
            raise OSError(28, "broken off")

    def after_val_step(self, epoch, iteration, *args):
        if (epoch, "validation") == self.broken_at:
            raise OSError(28, "broken off")


@pytest.mark.parametrize(
    "at", [(1, 2), (1, "validation"), (2, 2), (2, "validation"), (3, 2), (3, "validation"), (4, 1)]
)
def test_what_a_hook_does_before_an_epoch_is_done_once_however_often_the_epoch_goes_on(at, tmp_path):
    """It advances a state, adds a group of parameters, and changes weights."""
    cfg = {"max_epoch": 4, "save_every": "1 iteration"}
    straight = FineTuning(settings(tmp_path / "straight", **cfg))
    straight.run()
    broken = FineTuning(settings(tmp_path / "broken", **cfg))
    broken.broken_at = at
    with pytest.raises(OSError, match="broken off"):
        broken.run()
    resumed = FineTuning(settings(tmp_path / "broken", **cfg, resume=True))
    resumed.run()
    assert resumed.curriculum.level == straight.curriculum.level == 4
    assert torch.equal(resumed.model.weight, straight.model.weight)
    assert torch.equal(resumed.model.bias, straight.model.bias)
    assert [group["lr"] for group in resumed.optimizer.param_groups] == [0.1, 0.01]


class Weighted(ToyEpochTrainer):
    """The weight of its loss is learnt, and only the optimizer holds it; the bias is frozen in the first epoch."""

    broken_at = None

    def __init__(self, cfg):
        super().__init__(cfg, rows_loader(8), rows_loader(4))
        self.optimizer, self.weight = None, torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
        self.model.bias.requires_grad_(False)
        self.register_optimizer(torch.optim.Adam([*self.model.parameters(), self.weight], lr=0.1))
        self.register_scheduler(None)

    def before_train_epoch(self, epoch):
        if epoch == 2:
            self.model.bias.requires_grad_(True)

    def train_step(self, epoch, iteration, data_dict):
        output_dict, result_dict = super().train_step(epoch, iteration, data_dict)
        return output_dict, {"loss": result_dict["loss"] * torch.exp(-self.weight[0]) + self.weight.sum()}

    def after_train_step(self, epoch, iteration, *args):
        if (epoch, iteration) == self.broken_at:
            raise OSError(28, "broken off")


@pytest.mark.parametrize("at", [(1, 2), (2, 2), (3, 1), (3, 2), (4, 1)])
def test_parameters_outside_the_model_and_what_is_frozen_are_as_they_were(at, tmp_path):
    cfg = {"max_epoch": 4, "save_every": "1 iteration"}
    straight = Weighted(settings(tmp_path / "straight", **cfg))
    straight.run()
    broken = Weighted(settings(tmp_path / "broken", **cfg))
    broken.broken_at = at
    with pytest.raises(OSError, match="broken off"):
        broken.run()
    resumed = Weighted(settings(tmp_path / "broken", **cfg, resume=True))
    resumed.run()
    for name in ("model.weight", "model.bias", "weight"):
        assert torch.equal(*(operator.attrgetter(name)(each) for each in (straight, resumed)))


def test_what_a_script_freezes_anew_is_in_force_on_request(tmp_path, capsys):
    Weighted(settings(tmp_path, max_epoch=2)).run()
    Weighted(settings(tmp_path, max_epoch=3, resume=True)).run()
    assert "frozen or trained as in the checkpoint, and not as the script has it: bias" in capsys.readouterr().err
    resumed = Weighted(settings(tmp_path, max_epoch=4, resume=True, on_resume="config"))
    resumed.run()
    assert not resumed.model.bias.requires_grad


def test_groups_that_no_hook_rebuilds_are_an_error_that_names_the_optimizer(tmp_path):
    cfg = {"max_epoch": 4, "save_every": "1 iteration"}
    broken = FineTuning(settings(tmp_path, **cfg))
    broken.broken_at = (3, 2)
    with pytest.raises(OSError, match="broken off"):
        broken.run()
    resumed = FineTuning(settings(tmp_path, **cfg, resume=True))
    resumed.before_load = lambda metadata: None
    with pytest.raises(CheckpointError, match=r"part 'optimizer' of .*before_load"):
        resumed.run()


def test_an_exchanged_loader_is_read_from_its_beginning(tmp_path):
    class Curriculum(ToyEpochTrainer):
        def before_train_epoch(self, epoch):
            super().before_train_epoch(epoch)

        def after_train_epoch(self, epoch, summary_dict):
            self.train_loader = rows_loader(4)

    toy = Curriculum(settings(tmp_path, max_epoch=2))
    toy.run()
    assert [call for call in toy.calls if call[0] == "train_step"] == [
        ("train_step", 1, 1),
        ("train_step", 1, 2),
        ("train_step", 1, 3),
        ("train_step", 2, 1),
        ("train_step", 2, 2),
    ]


# ------------------------------------------------------------------------------------------- states of the user


class Level:
    """A state of the user's own."""

    def __init__(self):
        self.level = 0

    def state_dict(self):
        return {"level": self.level}

    def load_state_dict(self, state):
        self.level = state["level"]


class Counter(Hook):
    def __init__(self):
        self.count = 0

    def after_train_step(self, epoch, iteration, data_dict, output_dict, result_dict):
        self.count += 1

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


class WithStates(ToyEpochTrainer):
    def __init__(self, cfg):
        super().__init__(cfg)
        self.curriculum = self.register_state("curriculum", Level())
        self.ema = self.register_state("ema", torch.optim.swa_utils.AveragedModel(self.model))
        self.counters = [self.add_hook(Counter()), self.add_hook(Counter())]

    def after_train_step(self, *args):
        self.curriculum.level += 1
        self.ema.update_parameters(self.model)


def test_states_of_the_user_and_of_hooks_are_saved_and_restored_by_name(tmp_path):
    first = WithStates(settings(tmp_path))
    first.run()
    state = torch.load(tmp_path / "checkpoints" / "checkpoint.pth", weights_only=True)["states"]
    assert state.keys() == {"curriculum", "ema", "Counter", "Counter#2"}
    second = WithStates(settings(tmp_path, max_epoch=2, resume=True))
    second.run()
    assert second.curriculum.level == 6
    assert [counter.count for counter in second.counters] == [6, 6]
    assert int(second.ema.n_averaged) == 6


def test_a_state_under_a_taken_name_or_without_methods_is_refused(tmp_path):
    toy = ToyEpochTrainer(settings(tmp_path))
    toy.register_state("a", Level())
    with pytest.raises(RegistrationError, match=r"register_state\('a'\): this name is taken"):
        toy.register_state("a", Level())
    with pytest.raises(RegistrationError, match=r"register_state\('b'\) got .*; it must have state_dict"):
        toy.register_state("b", object())


def test_a_state_that_nobody_would_save_is_pointed_out(tmp_path):
    toy = ToyEpochTrainer(settings(tmp_path))
    toy.ema = torch.optim.swa_utils.AveragedModel(toy.model)
    toy.layer = toy.model
    toy.loss = nn.MSELoss()
    log_file = toy.log_file
    toy.run()
    text = Path(log_file).read_text()
    assert "self.ema has a state that is not saved: call self.register_state('ema', self.ema)" in text
    assert "self.layer" not in text
    assert "self.loss" not in text


def test_states_on_one_side_only_are_said_aloud(tmp_path):
    WithStates(settings(tmp_path)).run()
    toy = ToyEpochTrainer(settings(tmp_path, max_epoch=2, resume=True))
    toy.register_state("fresh", Level())
    log_file = toy.log_file
    toy.run()
    text = Path(log_file).read_text()
    assert "holds states that nobody registered: Counter, Counter#2, curriculum, ema" in text
    assert "holds no state for what is registered as: fresh" in text


# ------------------------------------------------------------------------------------------- changed data


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": 21}, r"samples was 23, is 21"),
        ({"batch_size": 3}, r"global_batch was 2, is 3"),
        ({"seed": 4}, r"seed was 0, is 4"),
        ({"grad_acc_steps": 2}, r"grad_acc_steps was 1, is 2"),
    ],
)
def test_a_resume_with_other_data_is_refused_with_both_values_unless_it_is_allowed(change, message, tmp_path):
    ToyEpochTrainer(settings(tmp_path), loader()).run()
    data = {key: value for key, value in change.items() if key in {"count", "batch_size"}}
    steps = {key: value for key, value in change.items() if key == "grad_acc_steps"}

    def resumed(**more):
        cfg = settings(tmp_path, max_epoch=2, resume=True, **steps, **more)
        cfg["exp"]["seed"] = change.get("seed", 0)
        return ToyEpochTrainer(cfg, loader(**data))

    with pytest.raises(CheckpointError, match=message + r".*--allow_changed_data"):
        resumed().run()
    toy = resumed(allow_changed_data=True)
    toy.run()
    assert toy.epoch == 2


# ------------------------------------------------------------------------------------------- the folder


def test_a_used_folder_is_refused_with_what_to_do(tmp_path):
    ToyEpochTrainer(settings(tmp_path)).run()
    before = (tmp_path / "checkpoints" / "epoch-1.pth").read_bytes()
    with pytest.raises(
        FolderInUseError, match=r"holds checkpoints of an earlier run \(.*\)\. Add --resume .* --overwrite"
    ):
        ToyEpochTrainer(settings(tmp_path)).run()
    assert (tmp_path / "checkpoints" / "epoch-1.pth").read_bytes() == before
    ToyEpochTrainer(settings(tmp_path)).run(only_validation=True)


def test_overwrite_removes_what_a_run_writes_and_nothing_else(tmp_path):
    ToyEpochTrainer(settings(tmp_path, max_epoch=3)).run()
    mine = tmp_path / "checkpoints" / "pretrained.pth"
    mine.write_bytes(b"mine")
    ToyEpochTrainer(settings(tmp_path, overwrite=True)).run()
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["checkpoint.prev.pth", "checkpoint.pth", "epoch-1.pth", "pretrained.pth"]
    assert mine.read_bytes() == b"mine"


def _hold(folder, ready, done):
    from vision3d_engine.core.locks import locked_folder

    with locked_folder(Path(folder)):
        ready.set()
        done.wait(PATIENCE_S)


def test_a_folder_in_use_is_refused_with_its_owner_and_free_after_a_kill(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(str(tmp_path), ready, done))
    other.start()
    assert ready.wait(PATIENCE_S)
    with pytest.raises(FolderInUseError, match=rf"is in use by process {other.pid} on .* since "):
        ToyEpochTrainer(settings(tmp_path)).run()
    other.kill()
    other.join()
    ToyEpochTrainer(settings(tmp_path)).run()


def test_a_run_inside_a_run_of_the_same_folder_is_refused(tmp_path):
    class Nested(ToyEpochTrainer):
        def after_train_epoch(self, epoch, summary_dict):
            ToyEpochTrainer(settings(tmp_path)).run()

    with pytest.raises(FolderInUseError, match="in use by a run of this process"):
        Nested(settings(tmp_path)).run()


def test_half_written_files_of_a_killed_process_are_removed(tmp_path):
    ToyEpochTrainer(settings(tmp_path)).run()
    (tmp_path / "checkpoints" / ".checkpoint.pth.abc.tmp").write_bytes(b"half")
    ToyEpochTrainer(settings(tmp_path, max_epoch=2, resume=True)).run()
    assert not list((tmp_path / "checkpoints").glob(".*.tmp"))


def test_a_moved_run_folder_goes_on(tmp_path):
    ToyEpochTrainer(settings(tmp_path / "here", save_latest_n_models=1)).run()
    (tmp_path / "here").rename(tmp_path / "there")
    toy = ToyEpochTrainer(settings(tmp_path / "there", max_epoch=2, resume=True, save_latest_n_models=1))
    toy.run()
    assert not (tmp_path / "there" / "checkpoints" / "epoch-1.pth").exists()
    assert not (tmp_path / "here").exists()


def test_tensorboard_does_not_go_back_in_steps(tmp_path):
    options = {"max_epoch": 2, "log_steps": 1, "save_every": "2 iterations"}
    with pytest.raises(OSError, match="broken off"):
        stopping(ToyEpochTrainer, 6)(settings(tmp_path, **options), loader()).run()
    ToyEpochTrainer(settings(tmp_path, **options, resume=True), loader()).run()
    events = EventAccumulator(str(tmp_path / "events"), purge_orphaned_data=True)
    events.Reload()
    steps = [event.step for event in events.Scalars("train/loss")]
    assert steps == list(range(1, 25))


# ------------------------------------------------------------------------------------------- full and read-only disks


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 500 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=500k", "tmpfs", str(folder)]
    if (
        sys.platform != "linux"
        or os.geteuid() != 0
        or subprocess.run(command, capture_output=True, check=False).returncode
    ):
        pytest.skip("mounting a small file system needs root and Linux")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


class Wide(ToyEpochTrainer):
    """A model of 60 kB; fills the disk after the first epoch."""

    fill_after = 1
    fill_to = 10_000

    def _register(self, train_loader, val_loader, lr):
        super()._register(train_loader, val_loader, lr)
        self.model.register_buffer("table", torch.zeros(15_000))

    def after_val_epoch(self, epoch, summary_dict):
        if epoch == self.fill_after:
            self._run.checkpoints.join()
            folder = Path(self._session.folders.output)
            free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
            (folder / "filler").write_bytes(b"x" * max(free - self.fill_to, 0))
        if epoch == 3 and self.fill_after == 1 and not self.stays_full:
            (Path(self._session.folders.output) / "filler").unlink()

    stays_full = False


@pytest.mark.parametrize("async_save", [True, False])
def test_a_full_disk_keeps_the_old_file_and_training_goes_on(small_disk, async_save):
    toy = Wide(settings(small_disk, max_epoch=4, save_latest_n_models=1, async_save=async_save))
    log_file = toy.log_file
    toy.run()
    text = Path(log_file).read_text()
    assert "No space left on device; the file that was there before stays as it was. Training goes on" in text
    state = torch.load(small_disk / "checkpoints" / "checkpoint.pth", weights_only=True)
    assert state["metadata"]["epoch"] == 4


@pytest.mark.parametrize("async_save", [True, False])
def test_when_the_last_save_fails_the_run_says_so_and_the_old_file_is_whole(small_disk, async_save):
    class StaysFull(Wide):
        stays_full = True

    with pytest.raises(FolderError, match=r"cannot write '.*checkpoint\.pth': No space left on device"):
        StaysFull(settings(small_disk, max_epoch=3, async_save=async_save)).run()
    state = torch.load(small_disk / "checkpoints" / "checkpoint.pth", weights_only=True)
    assert state["metadata"]["epoch"] == 1
    assert not list((small_disk / "checkpoints").glob(".*.tmp"))


def test_a_disk_without_space_for_the_weights_is_refused_before_the_first_step(small_disk):
    toy = Wide(settings(small_disk))
    free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
    (small_disk / "filler").write_bytes(b"x" * (free - 20_000))
    with pytest.raises(FolderError, match=r"MB free, the weights alone need 0 MB\. Make space"):
        toy.run()


def test_a_read_only_folder_is_refused_at_once(small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(FolderError, match=r"cannot write into the folder .*Read-only file system.*set exp\.output_dir"):
        ToyEpochTrainer(settings(small_disk / "run"))


def exploding(at, what="loss"):
    class Exploding(ToyEpochTrainer):
        def train_step(self, epoch, iteration, data_dict):
            output_dict, result_dict = super().train_step(epoch, iteration, data_dict)
            if self.total_steps == at and what == "loss":
                result_dict["loss"] = result_dict["loss"] * float("nan")
            return output_dict, result_dict

        def after_backward(self, epoch, iteration, data_dict, output_dict, result_dict):
            if self.total_steps == at and what == "gradient":
                self.model.bias.grad.fill_(float("inf"))

    return Exploding


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_run_that_is_no_longer_finite_stops_at_the_next_log_line_and_keeps_the_good_files(what, tmp_path):
    toy = exploding(8, what)(settings(tmp_path, max_epoch=3, log_steps=3, save_every="2 iterations"), loader(12))
    log_file = toy.log_file
    with pytest.raises(NonFiniteError) as caught:
        toy.run()
    text = str(caught.value)
    first = {"loss": "since iteration 2", "gradient": "since iteration 3"}[what]
    assert f"no longer finite: epoch 2, {first}" in text or "'checkpoint.pth' is not saved" in text
    assert "bias" in text
    state = torch.load(tmp_path / "checkpoints" / "checkpoint.pth", weights_only=True)
    assert torch.isfinite(state["model"]["bias"]).all()
    assert "stopped by NonFiniteError" in Path(log_file).read_text()


def test_the_first_step_of_a_long_window_is_named(tmp_path):
    toy = exploding(8)(settings(tmp_path, log_steps=11), loader(23))
    with pytest.raises(
        NonFiniteError, match=r"epoch 1, since iteration 8 \(loss nan\)\. Weights with NaN or infinity: "
    ):
        toy.run()


def test_when_it_is_to_be_ignored_the_run_goes_on_but_saves_no_such_weights(tmp_path):
    toy = exploding(7)(settings(tmp_path, max_epoch=3, nonfinite="ignore"), loader(12))
    log_file = toy.log_file
    toy.run()
    state = torch.load(tmp_path / "checkpoints" / "checkpoint.pth", weights_only=True)
    assert state["metadata"]["epoch"] == 1
    assert not (tmp_path / "checkpoints" / "epoch-2.pth").exists()
    assert toy.total_steps == 18
    assert "is not saved, so that it replaces no good file" in Path(log_file).read_text()


def test_an_exception_leaves_crash_pth_only_when_asked_for(tmp_path):
    for name, ask in (("a", False), ("b", True)):
        with pytest.raises(OSError, match="broken off"):
            stopping(ToyIterTrainer, 2)(settings(tmp_path / name, save_on_exception=ask)).run()
        assert (tmp_path / name / "checkpoints" / "crash.pth").exists() == ask
        assert not (tmp_path / name / "checkpoints" / "checkpoint.pth").exists()


def test_a_checkpoint_of_mid_epoch_that_is_loaded_before_the_run_advances_no_state_twice(tmp_path):
    class Counter:
        count = 0

        def state_dict(self):
            return {"count": self.count}

        def load_state_dict(self, state):
            self.count = state["count"]

    class Counting(ToyEpochTrainer):
        def __init__(self, cfg, stop_at=None):
            super().__init__(cfg)
            self.counter, self.stop_at = self.register_state("counter", Counter()), stop_at

        def before_train_epoch(self, epoch):
            self.counter.count += 1

        def before_train_step(self, epoch, iteration, data_dict):
            if (epoch, iteration) == self.stop_at:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Counting(settings(tmp_path, max_epoch=2, save_every="1 iteration"), (2, 3)).run()
    trainer = Counting(settings(tmp_path, max_epoch=2, overwrite=True))
    trainer.load("checkpoint.pth")
    trainer.run()
    assert trainer.counter.count == 2
