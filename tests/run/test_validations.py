"""When it is validated, that training goes on as if nothing had been, and what a run that never validates may lack."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from tests.toys import Rows, ToyEpochTrainer, ToyIterTrainer, linear_model, rows_loader, settings
from vision3d_engine import (
    ConfigError,
    EpochBasedTrainer,
    Hook,
    IterBasedTrainer,
    RegistrationError,
    ResultError,
    build_dataloader,
    get_context_manager,
)

KINDS = [EpochBasedTrainer, IterBasedTrainer]
SAMPLES = 22  # 11 batches of 2


class Noisy(Dataset):
    """Rows whose inputs draw from all three global generators, as data sets of users do."""

    def __init__(self, count=SAMPLES):
        self.rows = Rows(count)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        noise = torch.rand(()).item() + np.random.uniform() + random.random()  # noqa: NPY002
        return {"x": self.rows.x[index] + 0.1 * noise, "y": self.rows.y[index]}


class NoisyStream(IterableDataset):
    def __iter__(self):
        return (Noisy()[index] for index in range(SAMPLES))


class NoisyList:
    """Makes its batches when they are asked for, from the global generators of the step."""

    def __iter__(self):
        for index in range(SAMPLES // 2):
            yield {"x": self.x[index] + 0.1 * torch.rand(2, 3), "y": self.y[index]}

    def __init__(self):
        rows = Rows(SAMPLES)
        self.x, self.y = rows.x.split(2), rows.y.split(2)

    def __len__(self):
        return len(self.x)


class Stateful:
    """Knows how far it is, as torchdata's StatefulDataLoader does."""

    taken = 0

    def __iter__(self):
        batches = list(LOADERS["list"]())
        while self.taken < len(batches):
            self.taken += 1
            yield batches[self.taken - 1]
        self.taken = 0

    def __len__(self):
        return 11

    def state_dict(self):
        return {"taken": self.taken}

    def load_state_dict(self, state):
        self.taken = state["taken"]


LOADERS = {
    "build_dataloader": lambda: build_dataloader(Noisy(), 2, num_workers=0, shuffle=True),
    "adopted": lambda: DataLoader(Noisy(), 2, shuffle=True),
    "stream": lambda: DataLoader(NoisyStream(), 2),
    "list": lambda: [{"x": x, "y": y} for x, y in zip(Rows(22).x.split(2), Rows(22).y.split(2), strict=True)],
    "lazy list": NoisyList,
}


def network():
    torch.manual_seed(3)
    layers = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Dropout(0.3), nn.Linear(4, 1)
    return nn.Sequential(*layers).double()


def trainer_of(kind, folder, loader="build_dataloader", steps=1, val_loader=None, **trainer):
    """A trainer whose steps, validations and hooks draw, and that notes what it sees."""

    class Drawing(kind):
        def __init__(self):
            options = {"max_epoch": 2, "log_steps": 3, "grad_acc_steps": steps, "num_iters_per_epoch": 11}
            super().__init__({"exp": {"output_dir": str(folder), "seed": 5}, "trainer": {**options, **trainer}})
            val = build_dataloader(Noisy(6), 2, num_workers=0, shuffle=True) if val_loader is None else val_loader
            self.register_loader(loader() if callable(loader) else LOADERS[loader](), val)
            model = self.register_model(network())
            self.register_optimizer(torch.optim.Adam(model.parameters(), lr=0.05))
            self.batches, self.losses, self.validated, self.summaries, self.epochs = [], [], [], [], []

        def train_step(self, epoch, iteration, data_dict):
            assert self.iteration == iteration
            self.batches.append(data_dict["x"].clone())
            noise = torch.rand(()) + np.random.uniform() + random.random()  # noqa: NPY002
            error = self.model(data_dict["x"])[:, 0] - data_dict["y"] * noise
            self.losses.append(error.square().mean().item())
            return {}, {"loss": error.square().mean()}

        def after_train_epoch(self, epoch, summary_dict):
            self.epochs.append(dict(summary_dict))

        def before_val_epoch(self, epoch):
            self.drawn = torch.rand(()).item() + np.random.uniform() + random.random()  # noqa: NPY002

        def val_step(self, epoch, iteration, data_dict):
            error = self.model(data_dict["x"])[:, 0] - data_dict["y"] + torch.rand(())
            return {}, {"mae": error.abs().mean()}

        def after_val_epoch(self, epoch, summary_dict):
            self.validated.append((epoch, self.total_steps))
            self.summaries.append(dict(summary_dict) | {"drawn": self.drawn})

    return Drawing()


def run(*args, **options):
    trainer = trainer_of(*args, **options)
    trainer.run()
    return trainer


def rows_of(folder, phase="val"):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "time_s"} for row in rows if row["phase"] == phase]


def assert_same_training(one, other):
    assert one.losses == other.losses
    assert one.epochs == other.epochs
    assert all(map(torch.equal, one.batches, other.batches))
    for key, value in one.model.state_dict().items():
        assert torch.equal(value, other.model.state_dict()[key]), key


# ------------------------------------------------------------------------------------------- when


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("cadence", "steps", "places"),
    [
        ("1 epoch", 1, [(1, 11), (2, 22), (3, 33)]),
        ("2 epochs", 1, [(2, 22), (3, 33)]),
        ("4 iterations", 1, [(1, 4), (1, 8), (2, 12), (2, 16), (2, 20), (3, 24), (3, 28), (3, 32), (3, 33)]),
        ("4 iterations", 3, [(1, 6), (1, 9), (2, 14), (2, 17), (2, 20), (3, 25), (3, 28), (3, 33)]),
        ("11 iterations", 1, [(1, 11), (2, 22), (3, 33)]),
        ("20 iterations", 2, [(2, 21), (3, 33)]),
        ("never", 1, []),
    ],
)
def test_it_is_validated_at_the_first_update_at_or_after_each_multiple_and_at_the_end(
    kind, cadence, steps, places, tmp_path
):
    trainer = run(kind, tmp_path, steps=steps, val_every=cadence, max_epoch=3)
    assert trainer.validated == places
    assert [row["total_steps"] for row in rows_of(tmp_path)] == [total_steps for _, total_steps in places]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cadence", ["1 epoch", "5 iterations"])
def test_val_first_validates_once_before_the_first_epoch(kind, cadence, tmp_path):
    trainer = run(kind, tmp_path, val_every=cadence, val_first=True, max_epoch=1)
    plain = run(kind, tmp_path / "plain", val_every=cadence, max_epoch=1)
    assert trainer.validated == [(0, 0), *plain.validated]
    assert trainer.summaries[1:] == plain.summaries
    assert_same_training(trainer, plain)
    resumed = run(kind, tmp_path, val_every=cadence, val_first=True, resume=True)
    assert (0, 0) not in resumed.validated


@pytest.mark.parametrize("text", ["10 min", "often", "0 epochs", "1.5 iterations", "90 s"])
def test_a_cadence_that_is_not_counted_is_refused(text, tmp_path):
    with pytest.raises(ConfigError, match=r"cfg\.trainer\.val_every is .*such as '1 epoch' or '500 iterations'"):
        ToyEpochTrainer(settings(tmp_path, val_every=text))


def test_a_first_validation_of_none_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="val_first is true and val_every is 'never'"):
        ToyEpochTrainer(settings(tmp_path, val_every="never", val_first=True))


def test_a_training_loop_of_ones_own_is_validated_after_each_epoch_and_that_is_said_once(tmp_path):
    class OwnLoop(ToyEpochTrainer):
        def train_epoch(self):
            for data_dict in self.train_loader:
                self.train_step(self.epoch, 1, data_dict)[1]["loss"].backward()
                self.optimizer_step()

    toy = OwnLoop(settings(tmp_path, val_every="2 iterations", max_epoch=3))
    log_file = Path(toy.log_file)
    toy.run()
    assert [call for call in toy.calls if call[0] == "after_val_epoch"] == [("after_val_epoch", n) for n in (1, 2, 3)]
    assert log_file.read_text().count("train_epoch is a loop of your own") == 1
    assert [row["step"] for row in rows_of(tmp_path)] == [1, 2, 3]


def test_a_training_loop_around_that_of_the_engine_keeps_the_cadence(tmp_path):
    class Around(ToyEpochTrainer):
        def train_epoch(self):
            super().train_epoch()

    toy = Around(settings(tmp_path, val_every="2 iterations", max_epoch=2))
    toy.run()
    assert [row["total_steps"] for row in rows_of(tmp_path)] == [2, 4, 6]


# ------------------------------------------------------------------------------------------- as if nothing had been


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("loader", LOADERS)
def test_training_goes_on_behind_a_validation_to_the_same_bits(kind, steps, loader, tmp_path):
    trained = run(kind, tmp_path / "never", loader, steps, val_every="never")
    for cadence in ("3 iterations", "1 epoch"):
        assert_same_training(run(kind, tmp_path / cadence, loader, steps, val_every=cadence), trained)


def test_training_with_workers_goes_on_to_the_same_bits(tmp_path):
    def loader():
        return build_dataloader(Noisy(), 2, num_workers=2, shuffle=True)

    options = {"val_loader": build_dataloader(Noisy(6), 2, num_workers=1)}
    trained = run(EpochBasedTrainer, tmp_path / "never", loader, val_every="never", max_epoch=1)
    assert_same_training(
        run(EpochBasedTrainer, tmp_path / "val", loader, val_every="4 iterations", max_epoch=1, **options), trained
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_rows_and_lines_of_the_training_are_those_of_a_run_without(kind, tmp_path):
    run(kind, tmp_path / "never", val_every="never")
    run(kind, tmp_path / "val", val_every="2 iterations")
    for phase in ("train", "train_epoch"):
        assert rows_of(tmp_path / "never", phase) == rows_of(tmp_path / "val", phase)


OFTEN = ("never", "11 iterations")


class Unsized(Stateful):
    """Cannot be looked ahead in, so that nobody knows its last batch."""

    __len__ = None  # type: ignore[assignment]


def test_what_comes_behind_a_last_batch_that_nobody_knew_is_as_it_was(tmp_path):
    trainers = [trainer_of(EpochBasedTrainer, tmp_path / text, Unsized, val_every=text) for text in OFTEN]
    for trainer in trainers:
        trainer.run()
    assert trainers[1].validated == [(1, 11), (2, 22)]
    assert_same_training(*trainers)
    never, often = (rows_of(tmp_path / text, "train") for text in OFTEN)
    assert never == often


def test_the_modes_of_single_modules_are_as_they_were(tmp_path):
    trainer = trainer_of(EpochBasedTrainer, tmp_path, val_every="2 iterations")
    seen = []

    class Frozen(Hook):
        def before_train_epoch(self, epoch):
            trainer.model[1].eval()  # its statistics stay

        def before_train_step(self, *_):
            seen.append([module.training for module in trainer.model])

        def before_val_step(self, *_):
            assert not trainer.model[0].training

    trainer.add_hook(Frozen())
    trainer.run()
    assert seen == [[True, False, True, True, True]] * 22


def test_gradients_records_and_named_tensors_of_a_validation_do_not_reach_the_training(tmp_path):
    class Leaves(ToyEpochTrainer):
        def train_step(self, epoch, iteration, data_dict):
            assert not get_context_manager().data_keys
            self.add_records([iteration])
            return super().train_step(epoch, iteration, data_dict)

        def val_step(self, epoch, iteration, data_dict):
            with torch.enable_grad():
                super().val_step(epoch, iteration, data_dict)[1]["mae"].backward()
            get_context_manager().register("left", torch.zeros(1))
            self.add_records(["val"])
            return {}, {"mae": 0.0}

        def after_train_epoch(self, epoch, summary_dict):
            self.found = self.gather_records()

    toys = [Leaves(settings(tmp_path / cadence, val_every=cadence)) for cadence in ("never", "1 iterations")]
    for toy in toys:
        toy.run()
    assert torch.equal(toys[0].model.weight, toys[1].model.weight)
    assert toys[0].found == toys[1].found == [1, 2, 3]


def test_the_time_of_a_validation_is_in_no_rate_of_the_training(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    class Slow(ToyEpochTrainer):
        def train_step(self, epoch, iteration, data_dict):
            now[0] += 1
            return super().train_step(epoch, iteration, data_dict)

        def before_val_epoch(self, epoch):
            now[0] += 1000

    toy = Slow(settings(tmp_path, log_steps=1, val_every="1 iterations"))
    log_file = Path(toy.log_file)
    toy.run()
    lines = [line for line in log_file.read_text().splitlines() if "it/s" in line]
    assert len(lines) == 3
    assert all("1 it/s" in line and "time: 0.000s/1.000s" in line for line in lines)


# ------------------------------------------------------------------------------------------- seeds, curves, lines


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_validation_draws_follows_from_total_steps_alone(kind, tmp_path):
    often = run(kind, tmp_path / "often", val_every="2 iterations")
    rarely = run(kind, tmp_path / "rarely", val_every="8 iterations")
    expected = dict(zip(often.validated, often.summaries, strict=True))
    assert rarely.validated == [(1, 8), (2, 16), (2, 22)]
    assert rarely.summaries == [expected[place] for place in rarely.validated]
    assert len({summary["drawn"] for summary in often.summaries}) == len(often.summaries)


def test_what_a_validation_behind_an_epoch_draws_follows_from_the_epoch(tmp_path):
    each = run(EpochBasedTrainer, tmp_path / "each", max_epoch=4)
    second = run(EpochBasedTrainer, tmp_path / "second", val_every="2 epochs", max_epoch=4)
    assert second.summaries == each.summaries[1::2]


def test_only_validation_of_a_file_repeats_the_numbers_of_its_validation(tmp_path):
    trainer = trainer_of(EpochBasedTrainer, tmp_path, val_every="4 iterations", save_every="4 iterations", max_epoch=1)
    trainer.add_hook(StopsAt(4))
    with pytest.raises(ValueError, match="stopped"):
        trainer.run()
    again = trainer_of(EpochBasedTrainer, tmp_path, val_every="4 iterations", resume=True)
    again.run(only_validation=True)
    assert again.summaries == trainer.summaries


class StopsAt(Hook):
    """Breaks off behind the validation at so many total steps, before the next step."""

    def __init__(self, total_steps):
        self.total_steps = total_steps

    def before_train_step(self, *_):
        if self.owner.total_steps == self.total_steps + 1:
            raise ValueError("stopped")


def test_the_curve_of_a_cadence_in_iterations_lies_on_total_steps_and_its_line_says_where(tmp_path):
    trainer = trainer_of(EpochBasedTrainer, tmp_path, val_every="8 iterations")
    log_file = Path(trainer.log_file)
    trainer.run()
    assert [(row["step"], row["epoch"]) for row in rows_of(tmp_path)] == [(8, 1), (16, 2), (22, 2)]
    lines = [line.partition("[Val] ")[2] for line in log_file.read_text().splitlines() if "[Val]" in line]
    starts = ["epoch: 1/2, iter: 8/11, mae:", "epoch: 2/2, iter: 5/11, mae:", "epoch: 2/2, mae:"]
    assert all(line.startswith(start) for line, start in zip(lines, starts, strict=True)), lines


# ------------------------------------------------------------------------------------------- what follows validations


@pytest.mark.parametrize("kind", KINDS)
def test_a_schedule_on_a_metric_and_an_average_follow_each_validation_as_in_a_loop_by_hand(kind, tmp_path):
    values = iter([5.0, 4.0, 6.0, 3.0, 7.0, 8.0])
    seen = []

    class Plateau(kind):
        def __init__(self):
            options = {"max_epoch": 2, "val_every": "4 iterations", "grad_acc_steps": 2, "ema_decay": 0.9}
            super().__init__(settings(tmp_path, **options))
            self.register_loader(rows_loader(20), rows_loader(4))
            model = self.register_model(linear_model())
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            self.register_optimizer(optimizer)
            schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
            self.register_scheduler(schedule, metric="mae")

        def train_step(self, epoch, iteration, data_dict):
            return {}, {"loss": (self.model(data_dict["x"])[:, 0] - data_dict["y"]).square().mean()}

        def val_step(self, epoch, iteration, data_dict):
            return {}, {"size": self.model(data_dict["x"]).abs().mean()}

        def after_val_epoch(self, epoch, summary_dict):
            summary_dict["mae"] = next(values)
            seen.append((self.total_steps, self.model.weight.detach().clone()))

    trainer = Plateau()
    trainer.run()
    assert [steps for steps, _ in seen] == [4, 8, 12, 16, 20]
    weight, averages = by_hand()
    assert torch.equal(trainer.model.weight, weight)
    assert all(torch.equal(average, found) for average, (_, found) in zip(averages, seen, strict=True))


def by_hand():
    """Two epochs of 10 batches, updates of 2; validations at 4, 8, ... halve the rate when they are no best."""
    model, rate, number, average, averages = linear_model(), 0.1, 0, None, []
    rates = {4: 0.1, 8: 0.1, 12: 0.05, 16: 0.05}  # 5, 4, 6 (no best), 3
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    for _ in range(2):
        for data in rows_loader(20):
            number += 1
            ((model(data["x"])[:, 0] - data["y"]).square().mean() / 2).backward()
            if number % 2:
                continue
            optimizer.step()
            optimizer.zero_grad()
            n = number // 2 - 1
            decay = min(0.9, (1 + n) / (10 + n))
            weight = model.weight.detach()
            average = weight.clone() if average is None else average.lerp(weight, 1 - decay)
            if number % 4 == 0:
                averages.append(average.clone())
                optimizer.param_groups[0]["lr"] = rates.get(number, 0.05)
    return model.weight, averages


@pytest.mark.parametrize(
    ("cadence", "scores", "kept"),
    [("2 iterations", [9.0, 1.0, 2.0, 8.0, 7.0, 3.0], [2, 3]), ("3 iterations", [9.0, 1.0, 2.0, 3.0], [3])],
)
def test_best_models_are_selected_within_epochs_and_epoch_files_by_the_ends_of_epochs(cadence, scores, kept, tmp_path):
    values = iter(scores)

    class Selects(ToyEpochTrainer):
        def after_val_epoch(self, epoch, summary_dict):
            summary_dict["score"] = next(values)

    options = {"val_every": cadence, "max_epoch": 3, "save_latest_n_models": 1, "save_best_n_models": 1}
    toy = Selects(settings(tmp_path, **options), rows_loader(8))
    toy.save_best_model_on_metric("score")
    toy.run()
    files = sorted(path.name for path in (tmp_path / "checkpoints").glob("epoch*"))
    assert files == [f"epoch-{epoch}.pth" for epoch in kept]
    best = torch.load(tmp_path / "checkpoints" / "best_score.pth", weights_only=True)
    assert best["metadata"].items() >= {"epoch": 1, "total_steps": int(cadence[0])}.items()


def test_a_metric_that_is_not_there_is_said_at_the_first_validation(tmp_path):
    toy = ToyEpochTrainer(settings(tmp_path, val_every="2 iterations", max_epoch=3))
    toy.save_best_model_on_metric("nothing")
    with pytest.raises(ResultError, match="the validation summary has no number 'nothing'"):
        toy.run()
    assert toy.total_steps == 2


# ------------------------------------------------------------------------------------------- saving and resuming


MOMENTS = ["before_val_epoch", "val_step", "after_val_epoch", "before_train_step"]


WAYS = [
    *(("build_dataloader", moment) for moment in MOMENTS),
    *((loader, "val_step") for loader in ("lazy list", "stream")),
    *(
        pytest.param(loader, moment, marks=pytest.mark.slow)
        for loader in ("lazy list", "stream")
        for moment in ("before_val_epoch", "after_val_epoch", "before_train_step")
    ),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("loader", "moment"), WAYS)
def test_a_resume_makes_the_validation_that_was_broken_off_and_none_that_had_ended(kind, moment, loader, tmp_path):
    options = {"loader": loader, "steps": 2, "val_every": "5 iterations", "val_first": True}
    straight = run(kind, tmp_path / "straight", **options)
    assert straight.validated == [(0, 0), (1, 6), (1, 10), (2, 15), (2, 21), (2, 22)]
    for place in [(0, 0), (1, 6), (2, 15), (2, 21)]:
        folder = tmp_path / str(place)
        broken = trainer_of(kind, folder, **options)
        break_off(broken, moment, place)
        with pytest.raises(ValueError, match="broken off"):
            broken.run()
        resumed = run(kind, folder, **options, resume=True)
        behind = [each for each in straight.validated if each > place or (each == place and moment != MOMENTS[-1])]
        assert resumed.validated == behind
        assert resumed.summaries == straight.summaries[-len(behind) :]
        assert resumed.losses == straight.losses[place[1] :]
        assert resumed.epochs == straight.epochs[-len(resumed.epochs) :]
        for key, value in straight.model.state_dict().items():
            assert torch.equal(value, resumed.model.state_dict()[key])
        for phase in ("train", "train_epoch", "val"):
            assert rows_of(folder, phase) == rows_of(tmp_path / "straight", phase)


def break_off(trainer, moment, place):
    """Let a method raise in, or right behind, the validation at a place."""
    method = getattr(trainer, moment)
    steps = place[1] + (moment == "before_train_step")

    def broken(*args):
        if trainer.total_steps == steps:
            raise ValueError("broken off")
        return method(*args)

    setattr(trainer, moment, broken)


def test_what_is_saved_around_the_validation_of_a_resume_knows_the_place_of_the_loader(tmp_path):
    options = {"loader": Stateful, "val_every": "5 iterations", "max_epoch": 1}
    straight = run(EpochBasedTrainer, tmp_path / "straight", **options)
    folder = tmp_path / "broken"
    for moment in ("val_step", "before_train_step"):
        broken = trainer_of(EpochBasedTrainer, folder, **options, resume=moment != "val_step")
        break_off(broken, moment, (1, 5))
        with pytest.raises(ValueError, match="broken off"):
            broken.run()
    resumed = run(EpochBasedTrainer, folder, **options, resume=True)
    assert resumed.losses == straight.losses[5:]


def test_a_run_that_goes_on_in_the_same_process_makes_the_broken_validation_first(tmp_path):
    straight = run(EpochBasedTrainer, tmp_path / "straight", val_every="4 iterations", max_epoch=1)
    trainer = trainer_of(EpochBasedTrainer, tmp_path / "broken", val_every="4 iterations", max_epoch=1)
    failures = iter([1])

    class FailsOnce(Hook):
        def after_val_step(self, *_):
            if next(failures, None):
                raise ValueError("once")

    trainer.add_hook(FailsOnce())
    with pytest.raises(ValueError, match="once"):
        trainer.run()
    trainer.run()
    assert trainer.validated == straight.validated
    assert_same_training(trainer, straight)


def test_a_resume_of_a_file_without_this_counter_waits_for_the_next_multiple(tmp_path):
    trainer = trainer_of(EpochBasedTrainer, tmp_path, save_every="6 iterations", max_epoch=1)
    trainer.add_hook(StopsAt(6))
    with pytest.raises(ValueError, match="stopped"):
        trainer.run()
    path = tmp_path / "checkpoints" / "checkpoint.pth"
    state = torch.load(path, weights_only=True)
    del state["progress"]["validated"]
    shutil.rmtree(tmp_path / "checkpoints")
    path.parent.mkdir()
    torch.save(state, path)
    resumed = run(EpochBasedTrainer, tmp_path, val_every="4 iterations", resume=True, max_epoch=1)
    assert resumed.validated == [(1, 8), (1, 11)]


def test_one_iterator_for_training_and_validation_within_its_epochs_is_refused(tmp_path):
    class Iterating(NoisyList):
        def __iter__(self):
            self.left = [{"x": x, "y": y} for x, y in zip(self.x, self.y, strict=True)]
            return self

        def __next__(self):
            if not self.left:
                raise StopIteration
            return self.left.pop(0)

    loader = Iterating()
    with pytest.raises(RegistrationError, match=r"same Iterating for training and validation, which has one iterator"):
        trainer_of(EpochBasedTrainer, tmp_path, lambda: loader, val_loader=loader, val_every="4 iterations")


# ------------------------------------------------------------------------------------------- never


class Trains(EpochBasedTrainer):
    """Has a training step and nothing for validations."""

    def __init__(self, folder, *loaders, **trainer):
        super().__init__(settings(folder, **trainer))
        self.register_loader(*loaders)
        model = self.register_model(linear_model())
        self.register_optimizer(torch.optim.SGD(model.parameters(), lr=0.1))

    def train_step(self, epoch, iteration, data_dict):
        return {}, {"loss": (self.model(data_dict["x"])[:, 0] - data_dict["y"]).square().mean()}


@pytest.mark.parametrize("loaders", [(), (None,), ([],)])
def test_a_run_that_never_validates_needs_neither_a_loader_nor_a_step_for_it(loaders, tmp_path):
    trainer = Trains(tmp_path, rows_loader(), *loaders, val_every="never", max_epoch=2)
    trainer.run()
    assert trainer.total_steps == 6
    assert (tmp_path / "checkpoints" / "epoch-2.pth").exists()
    assert not rows_of(tmp_path)
    resumed = Trains(tmp_path, rows_loader(), val_every="never", max_epoch=3, resume=True)
    resumed.run()
    assert resumed.total_steps == 9


def test_a_run_that_validates_needs_both_and_says_what_to_do(tmp_path):
    with pytest.raises(RegistrationError, match=r"no val loader; call register_loader\(train.*val_every to 'never'"):
        Trains(tmp_path, rows_loader()).run()
    with pytest.raises(RegistrationError, match=r"no val_step; write one, or set trainer\.val_every to 'never'"):
        Trains(tmp_path, rows_loader(), rows_loader()).run()
    with pytest.raises(RegistrationError, match="no val loader"):
        Trains(tmp_path, rows_loader(), val_every="never").run(only_validation=True)
    with pytest.raises(RegistrationError, match="no val_step"):
        Trains(tmp_path, rows_loader(), rows_loader(), val_every="never").run(only_validation=True)


def test_a_validation_loop_of_ones_own_needs_no_val_step(tmp_path):
    class OwnValidation(Trains):
        def val_epoch(self):
            self.has_validated = True

    trainer = OwnValidation(tmp_path, rows_loader(), rows_loader())
    trainer.run()
    assert trainer.has_validated


def test_to_follow_validations_that_never_come_is_refused(tmp_path):
    trainer = Trains(tmp_path, rows_loader(), val_every="never")
    trainer.register_scheduler(torch.optim.lr_scheduler.ReduceLROnPlateau(trainer.optimizer), metric="loss")
    with pytest.raises(RegistrationError, match=r"register_scheduler\(metric='loss'\) follows.*val_every is 'never'"):
        trainer.run()
    trainer = Trains(tmp_path, rows_loader(), val_every="never")
    trainer.save_best_model_on_metric("recall")
    with pytest.raises(RegistrationError, match=r"save_best_model_on_metric\('recall'\) follows.*set it to '1 epoch'"):
        trainer.run()


@pytest.mark.parametrize("kind", [ToyEpochTrainer, ToyIterTrainer])
def test_only_validation_validates_whatever_the_cadence(kind, tmp_path):
    toy = kind(settings(tmp_path, val_every="never"))
    toy.run(only_validation=True)
    assert [call[0] for call in toy.calls].count("val_step") == 2
