"""Validation on several sets: numbers against loops written by hand, and who is called when."""

import json
import os
from pathlib import Path

import pytest
import torch

from tests.toys import Rows, ToyEpochTrainer, ToyIterTrainer, linear_model, rows_loader, settings
from vision3d_engine import (
    DataError,
    EpochBasedTrainer,
    Hook,
    IterBasedTrainer,
    RegistrationError,
    ResultError,
    SkipBatch,
    build_dataloader,
)
from vision3d_engine.core.children import is_running


class Noisy(Rows):
    """Rows from a place on, each with noise that is drawn when it is loaded."""

    def __init__(self, count, start=0):
        super().__init__(start + count)
        self.start, self.count = start, count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        row = super().__getitem__(self.start + index)
        return row | {"index": torch.tensor(self.start + index), "noise": torch.randn((), dtype=torch.float64)}


def shuffled(count, start=0):
    return build_dataloader(Noisy(count, start), 2, shuffle=True, num_workers=0)


class Ordered(torch.utils.data.IterableDataset):
    """The same rows, of a loader that is read in order."""

    def __init__(self, count):
        self.rows = Noisy(count)

    def __iter__(self):
        return (self.rows[index] for index in range(len(self.rows)))


def make_recording(kind):
    class Recording(kind):
        """Notes what it validates, and draws in its steps."""

        def __init__(self, folder, val_loader, **trainer):
            super().__init__(settings(folder, **{"max_epoch": 2, **trainer}))
            self.calls, self.seen, self.drawn, self.summaries = [], [], {}, []
            self.register_loader(rows_loader(), val_loader)
            self.register_model(linear_model())
            self.register_optimizer(torch.optim.SGD(self.model.parameters(), lr=0.1))

        def train_step(self, epoch, iteration, data_dict):
            error = self.model(data_dict["x"])[:, 0] - data_dict["y"]
            return {}, {"loss": error.square().mean()}

        def before_val_epoch(self, epoch):
            self.calls.append(("before_val_epoch", epoch, self.val_name))

        def before_val_step(self, epoch, iteration, data_dict):
            self.calls.append(("before_val_step", self.val_name, iteration))

        def val_step(self, epoch, iteration, data_dict):
            self.calls.append(("val_step", self.val_name, iteration))
            drawn = float(torch.rand((), dtype=torch.float64))
            noise = data_dict.get("noise", torch.zeros(1)).tolist()
            self.drawn.setdefault((epoch, self.val_name), []).append((drawn, noise, data_dict["x"].tolist()))
            self.add_records(data_dict["y"].tolist())
            error = self.model(data_dict["x"])[:, 0] - data_dict["y"]
            return {}, {"mae": error.abs().mean(), "loss": error.square().mean()}

        def after_val_step(self, epoch, iteration, data_dict, output_dict, result_dict):
            self.calls.append(("after_val_step", self.val_name, iteration))

        def after_val_epoch(self, epoch, summary_dict):
            self.calls.append(("after_val_epoch", epoch, self.val_name))
            self.summaries.append(dict(summary_dict))

    return Recording


Recording = make_recording(EpochBasedTrainer)


# ------------------------------------------------------------------------------------ numbers


@pytest.mark.parametrize("kind", [EpochBasedTrainer, IterBasedTrainer])
def test_the_summary_holds_the_means_of_each_set_as_a_loop_by_hand_takes_them(kind, tmp_path):
    """To the last bit: the sums over batches are exact for so few numbers of float64."""
    sets = {"easy": rows_loader(4), "hard": rows_loader(7, batch_size=3)}
    trainer = make_recording(kind)(tmp_path, sets, max_epoch=1)
    trainer.run()
    (summary,), model = trainer.summaries, trainer.model
    assert list(summary) == ["easy/mae", "easy/loss", "hard/mae", "hard/loss"]
    for name, loader in sets.items():
        with torch.no_grad():
            pairs = [((model(batch["x"])[:, 0] - batch["y"]).abs().mean(), len(batch["y"])) for batch in loader]
        mean = sum(float(mae) * count for mae, count in pairs) / sum(count for _, count in pairs)
        assert summary[f"{name}/mae"] == mean


def test_a_named_set_has_the_numbers_of_a_single_loader(tmp_path):
    single, named = Recording(tmp_path / "a", rows_loader(7)), Recording(tmp_path / "b", {"only": rows_loader(7)})
    single.run()
    named.run()
    assert [{f"only/{key}": value for key, value in each.items()} for each in single.summaries] == named.summaries


def test_a_single_loader_draws_what_it_always_drew(tmp_path):
    """What the engine drew when it had single loaders only; normal numbers go through the platform's logarithm."""
    trainer = Recording(tmp_path, shuffled(4), max_epoch=1)
    trainer.run()
    assert [drawn for drawn, _, _ in trainer.drawn[1, None]] == [0.15675005867033376, 0.29024944288733145]
    noise = [number for _, numbers, _ in trainer.drawn[1, None] for number in numbers]
    expected = [-0.23393382842734103, 0.8132095700282465, -0.7391373717371355, 0.14706601377603468]
    assert noise == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("make", [shuffled, lambda count: torch.utils.data.DataLoader(Ordered(count), batch_size=2)])
def test_what_a_set_gives_depends_neither_on_other_sets_nor_on_their_order(make, tmp_path):
    registered = [{"hard": 5}, {"easy": 4, "hard": 5}, {"hard": 5, "easy": 4, "third": 1}]
    found = []
    for number, counts in enumerate(registered):
        trainer = Recording(tmp_path / str(number), {name: make(count) for name, count in counts.items()})
        trainer.run()
        summaries = [{key: summary[key] for key in ("hard/mae", "hard/loss")} for summary in trainer.summaries]
        found.append((summaries, [trainer.drawn[epoch, "hard"] for epoch in (1, 2)]))
    assert found[0] == found[1] == found[2]


def test_two_sets_of_one_loader_draw_other_numbers_and_read_the_same_data(tmp_path):
    loader = shuffled(6)
    trainer = Recording(tmp_path, {"a": loader, "b": loader}, max_epoch=1)
    trainer.run()
    first, second = trainer.drawn[1, "a"], trainer.drawn[1, "b"]
    assert [drawn for drawn, _, _ in first] != [drawn for drawn, _, _ in second]
    assert sorted(row for _, _, rows in first for row in rows) == sorted(row for _, _, rows in second for row in rows)


def test_each_set_is_cut_by_limit_batches(tmp_path):
    trainer = Recording(tmp_path, {"easy": rows_loader(8), "hard": rows_loader(6)}, limit_batches=2, max_epoch=1)
    trainer.run()
    steps = [call[1:] for call in trainer.calls if call[0] == "val_step"]
    assert steps == [("easy", 1), ("easy", 2), ("hard", 1), ("hard", 2)]


def test_all_sets_are_validated_with_the_average_of_the_weights(tmp_path):
    class Weights(Recording):
        def val_step(self, epoch, iteration, data_dict):
            return {}, {"weight": self.model.weight[0, 0].clone()}

    trainer = Weights(tmp_path, {"easy": rows_loader(4), "hard": rows_loader(2)}, ema_decay=0.5, max_epoch=1)
    trainer.run()
    (summary,) = trainer.summaries
    assert summary["easy/weight"] == summary["hard/weight"] != trainer.model.weight[0, 0].item()


# ------------------------------------------------------------------------------------ hooks


def test_hooks_around_validation_act_once_and_steps_find_the_name_of_their_set(tmp_path):
    trainer = Recording(tmp_path, {"easy": rows_loader(4), "hard": rows_loader(2)}, max_epoch=1)
    names = []

    class Named(Hook):
        def before_val_step(self, epoch, iteration, data_dict):
            names.append(self.owner.val_name)

    trainer.add_hook(Named())
    trainer.run()
    steps = ("before_val_step", "val_step", "after_val_step")
    batches = [("easy", 1), ("easy", 2), ("hard", 1)]
    expected = [(step, *batch) for batch in batches for step in steps]
    assert trainer.calls == [("before_val_epoch", 1, None), *expected, ("after_val_epoch", 1, None)]
    assert names == ["easy", "easy", "hard"]
    assert trainer.val_name is None


def test_an_error_in_a_set_leaves_no_name_behind(tmp_path):
    class Failing(Recording):
        def val_step(self, epoch, iteration, data_dict):
            raise InterruptedError

    trainer = Failing(tmp_path, {"easy": rows_loader(4)})
    with pytest.raises(InterruptedError):
        trainer.run()
    assert trainer.val_name is None


def test_a_script_with_a_single_loader_may_have_a_val_name_of_its_own(tmp_path):
    trainer = Recording(tmp_path, rows_loader(2), max_epoch=1)
    trainer.val_name = "scans"
    trainer.run()
    assert ("val_step", "scans", 1) in trainer.calls
    assert trainer.val_name == "scans"


@pytest.mark.parametrize("moment", ["before_train_epoch", "before_val_epoch"])
def test_sets_may_be_exchanged_by_others_or_a_single_loader_in_a_hook(moment, tmp_path):
    exchanged = {2: {"hard": rows_loader(2), "new": rows_loader(4)}, 3: rows_loader(6)}

    def exchange(self, epoch):
        self.val_loader = exchanged.get(epoch, self.val_loader)

    trainer = type("Exchanging", (Recording,), {moment: exchange})(tmp_path, {"easy": rows_loader(2)}, max_epoch=3)
    trainer.run()
    keys = [list(summary) for summary in trainer.summaries]
    assert keys == [["easy/mae", "easy/loss"], ["hard/mae", "hard/loss", "new/mae", "new/loss"], ["mae", "loss"]]


def test_sets_that_a_hook_exchanges_are_checked_like_registered_ones(tmp_path):
    class Exchanging(Recording):
        def before_val_epoch(self, epoch):
            self.val_loader = {"a/b": rows_loader(2)}

    with pytest.raises(RegistrationError, match="validation set named 'a/b'"):
        Exchanging(tmp_path, {"easy": rows_loader(2)}).run()


# ------------------------------------------------------------------------------------ what follows from the numbers


@pytest.mark.parametrize("largest", [False, True])
def test_any_key_selects_best_models_in_a_file_of_a_safe_name(largest, tmp_path):
    trainer = Recording(tmp_path, {"easy": rows_loader(4), "hard": rows_loader(3)}, max_epoch=3)
    trainer.save_best_model_on_metric("hard/mae", largest=largest)
    trainer.run()
    scores = [summary["hard/mae"] for summary in trainer.summaries]
    best = (max if largest else min)(scores)
    saved = torch.load(tmp_path / "checkpoints" / "best_hard_mae.pth", weights_only=True)
    assert saved["metadata"]["epoch"] == scores.index(best) + 1


def test_a_metric_without_the_name_of_its_set_is_an_error_that_lists_all_keys(tmp_path):
    trainer = Recording(tmp_path, {"easy": rows_loader(4), "hard": rows_loader(3)})
    trainer.save_best_model_on_metric("mae")
    with pytest.raises(ResultError, match=r"no number 'mae'.*\(it has: easy/mae, easy/loss, hard/mae, hard/loss\)"):
        trainer.run()


def test_a_metric_of_a_set_drives_a_schedule(tmp_path):
    trainer = Recording(tmp_path, {"easy": rows_loader(4), "hard": rows_loader(3)})
    told = []

    class Telling(torch.optim.lr_scheduler.ReduceLROnPlateau):
        def step(self, metrics, epoch=None):
            told.append(metrics)
            super().step(metrics)

    trainer.register_scheduler(Telling(trainer.optimizer), metric="hard/mae")
    trainer.run()
    assert told == [summary["hard/mae"] for summary in trainer.summaries]


def test_a_metric_that_is_nan_is_named_with_its_batch_in_its_set(tmp_path):
    class Broken(Recording):
        def val_step(self, epoch, iteration, data_dict):
            is_broken = (self.val_name, iteration) == ("hard", 2)
            return {}, {"mae": torch.tensor(float("nan") if is_broken else 1.0)}

    trainer = Broken(tmp_path, {"easy": rows_loader(2), "hard": rows_loader(6)}, max_epoch=1)
    trainer.save_best_model_on_metric("hard/mae")
    trainer.run()
    said = "the metric 'hard/mae', which selects best models, is NaN in epoch 1, from batch 2 of this process on"
    assert said in Path(trainer.log_file).read_text()


def test_records_are_gathered_of_all_sets_in_their_order_or_of_one(tmp_path):
    class Gathering(Recording):
        def after_val_epoch(self, epoch, summary_dict):
            self.records = {name: self.gather_records(name) for name in (None, "easy", "hard")}
            with pytest.raises(
                RegistrationError, match=r"'hrad'\): no validation set is called so; did you mean 'hard'"
            ):
                self.gather_records("hrad")

    trainer = Gathering(tmp_path, {"hard": rows_loader(3), "easy": rows_loader(5)})
    trainer.run()
    targets = Rows(5).y.tolist()
    assert trainer.records == {None: targets[:3] + targets, "hard": targets[:3], "easy": targets}


def test_records_of_a_name_are_an_error_with_a_single_loader(tmp_path):
    class Gathering(Recording):
        def after_val_epoch(self, epoch, summary_dict):
            self.gather_records("hard")

    with pytest.raises(RegistrationError, match=r"gather_records\('hard'\).*\(registered: none\)"):
        Gathering(tmp_path, rows_loader(3)).run()


# ------------------------------------------------------------------------------------ where the numbers go


def test_the_log_has_a_line_for_each_set_and_one_for_what_a_hook_has_added(tmp_path):
    class Adding(Recording):
        def after_val_epoch(self, epoch, summary_dict):
            super().after_val_epoch(epoch, summary_dict)
            summary_dict["both"] = 0.5
            summary_dict["hard/added"] = 0.25

    trainer = Adding(tmp_path, {"easy": rows_loader(4), "hard": rows_loader(3)}, max_epoch=1)
    trainer.run()
    lines = [line.partition("[Val] ")[2] for line in Path(trainer.log_file).read_text().splitlines() if "[Val]" in line]
    (summary,) = trainer.summaries
    easy, hard = ("mae: {0[%s/mae]:.3f}, loss: {0[%s/loss]:.3f}".replace("%s", name) for name in ("easy", "hard"))
    assert lines[0].startswith(f"easy, epoch: 1/1, {easy.format(summary)}, time: ")
    assert lines[1].startswith(f"hard, epoch: 1/1, {hard.format(summary)}, added: 0.250, time: ")
    assert lines[2:] == ["epoch: 1/1, both: 0.500"]


def test_a_validation_is_one_row_of_all_numbers_and_a_curve_for_each(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = Recording(tmp_path, {"easy": rows_loader(4), "hard": rows_loader(3)})
    trainer.run()
    rows = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert [row["values"] for row in rows if row["phase"] == "val"] == trainer.summaries
    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    assert {"val/easy/mae", "val/easy/loss", "val/hard/mae", "val/hard/loss"} <= set(events.Tags()["scalars"])


@pytest.mark.parametrize("kind", [ToyEpochTrainer, ToyIterTrainer])
def test_only_validation_validates_all_sets_once_and_saves_nothing(kind, tmp_path):
    trainer = kind(settings(tmp_path), rows_loader(), {"easy": rows_loader(4), "hard": rows_loader(2)})
    trainer.run(only_validation=True)
    steps = [call[1:] for call in trainer.calls if call[0] == "val_step"]
    assert steps == [(0, 1), (0, 2), (0, 1)]
    assert not list((tmp_path / "checkpoints").iterdir())


# ------------------------------------------------------------------------------------ wrong loaders


def test_an_empty_set_is_named_before_anything_runs(tmp_path):
    trainer = Recording(tmp_path, {"easy": rows_loader(4), "hard": []})
    with pytest.raises(DataError, match="the validation loader 'hard' is empty: len"):
        trainer.run()
    assert not trainer.calls


class Unsized:
    def __init__(self, *batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


@pytest.mark.parametrize(
    ("batches", "said"),
    [
        ((), "the validation loader 'hard' is empty: it yields no batch"),
        (([1],), "the validation loader 'hard' yielded a list of 1; batches must be dicts"),
    ],
)
def test_a_set_that_goes_wrong_in_the_validation_is_named(batches, said, tmp_path):
    with pytest.raises(DataError, match=said):
        Recording(tmp_path, {"easy": rows_loader(4), "hard": Unsized(*batches)}).run()


@pytest.mark.parametrize("persistent", [True, False])
def test_persistent_workers_of_a_set_are_started_once_and_end_when_the_set_is_dropped(persistent, tmp_path):
    class Pids(Noisy):
        def __getitem__(self, index):
            return super().__getitem__(index) | {"pid": os.getpid()}

    class Dropping(Recording):
        def before_train_epoch(self, epoch):
            if epoch == 3:
                self.val_loader = {"easy": rows_loader(2)}

        def before_val_step(self, epoch, iteration, data_dict):
            pids.update(data_dict.get("pid", torch.tensor([])).tolist())

        def after_val_epoch(self, epoch, summary_dict):
            alive.append(any(is_running(pid) for pid in pids))

    pids, alive = set(), []
    options = {"num_workers": 1, "persistent_workers": persistent}
    Dropping(
        tmp_path, {"easy": rows_loader(2), "hard": torch.utils.data.DataLoader(Pids(4), 2, **options)}, max_epoch=3
    ).run()
    assert (len(pids), alive) == ((1, [True, True, False]) if persistent else (2, [False] * 3))


def test_a_batch_of_a_set_that_is_left_out_is_counted_and_named_with_its_set(tmp_path):
    class Skipping(Recording):
        def val_step(self, epoch, iteration, data_dict):
            if (self.val_name, iteration) == ("hard", 2):
                raise SkipBatch("no points")
            return super().val_step(epoch, iteration, data_dict)

    trainer = Skipping(tmp_path, {"easy": rows_loader(4), "hard": rows_loader(6)}, max_epoch=1)
    trainer.run()
    (summary,) = trainer.summaries
    assert [key for key in summary if "skipped" in key] == ["hard/skipped"]
    assert summary["hard/skipped"] == 1
    said = "skipped: no points (validation 'hard' epoch 1, iteration 2, samples 2, 3)"
    assert said in Path(trainer.log_file).read_text()
