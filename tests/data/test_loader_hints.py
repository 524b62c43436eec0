"""What is said about a loader that holds the training up: only when it does, once, and what helps."""

import re
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    SequentialSampler,
    WeightedRandomSampler,
)

from tests.toys import Rows, ToyEpochTrainer, settings
from vision3d_engine import build_dataloader
from vision3d_engine.data.dataloader import adopted, sampler_of
from vision3d_engine.data.loader_hints import length_hint, loading_hint, sharing_hint, startup_hint
from vision3d_engine.trainers.base import BaseTrainer


def loader(workers=0, persistent_workers=False):
    """Stand in for a DataLoader, which would warn on a machine with fewer cores than workers."""
    return SimpleNamespace(num_workers=workers, persistent_workers=persistent_workers)


def test_waiting_in_the_training_process_asks_for_workers():
    said = loading_hint(loader(), 0.03, 0.01)
    assert said is not None
    assert said.startswith("75% of the time is spent waiting for data (0.030s a batch)")
    assert "set num_workers to 2 or more" in said


def test_waiting_in_spite_of_workers_asks_for_more_or_for_a_faster_data_set():
    said = loading_hint(loader(3), 0.03, 0.01)
    assert said is not None
    assert "with 3 workers: raise num_workers, or make Dataset.__getitem__ faster" in said


@pytest.mark.parametrize(
    ("data_s", "model_s"),
    [(0.0, 0.0), (0.0, 1.0), (0.004, 0.0), (0.2, 0.81), (0.0049, 0.0001)],
    ids=["nothing measured", "no wait", "short waits", "a fifth less a bit", "short and all of it"],
)
def test_waits_that_cost_little_are_not_worth_a_word(data_s, model_s):
    assert loading_hint(loader(), data_s, model_s) is None


def test_the_limits_themselves_are_worth_one():
    assert loading_hint(loader(), 0.2, 0.8) is not None
    assert loading_hint(loader(), 0.005, 0.0) is not None


@pytest.mark.parametrize("foreign", [[{"x": 1}], SimpleNamespace()])
def test_a_loader_without_workers_to_set_is_left_alone(foreign):
    assert loading_hint(foreign, 1.0, 0.0) is None
    assert startup_hint(foreign, 10.0, 10.0) is None


def test_workers_that_start_anew_for_each_epoch_are_pointed_out():
    said = startup_hint(loader(2), 1.5, 10.0)
    assert said is not None
    assert said.startswith("the first batch of the epoch came after 1.5s of 10.0s, since the 2 data workers")
    assert said.endswith("pass persistent_workers=True to the loader")


@pytest.mark.parametrize(
    ("options", "first_s", "epoch_s"),
    [
        ({"workers": 0}, 5.0, 10.0),
        ({"workers": 2, "persistent_workers": True}, 5.0, 10.0),
        ({"workers": 2}, 0.4, 1.0),
        ({"workers": 2}, 1.0, 100.0),
    ],
    ids=["no workers", "they stay", "a moment", "a small share"],
)
def test_a_start_that_costs_little_or_cannot_be_helped_is_not_worth_a_word(options, first_s, epoch_s):
    assert startup_hint(loader(**options), first_s, epoch_s) is None


class Slow(Rows):
    def __getitem__(self, index):
        time.sleep(0.004)
        return super().__getitem__(index)


class Toy(ToyEpochTrainer):
    """Writes its lines as the engine does."""

    log = BaseTrainer.log


def test_a_run_with_a_slow_data_set_is_told_once(tmp_path):
    toy = Toy(settings(tmp_path, max_epoch=3, log_steps=2), DataLoader(Slow(12), batch_size=2))
    toy.run()
    said = [line for line in Path(toy.log_file).read_text().splitlines() if "WARNING" in line]
    assert len(said) == 1
    assert "loaded in the training process: set num_workers to 2 or more" in said[0]


def test_a_run_whose_workers_only_start_slowly_is_told_of_the_start_and_not_to_raise_their_number(
    tmp_path, monkeypatch
):
    """The first line of an epoch holds the start; the times are those of a clock that the test winds."""
    hand = {"s": 0.0}
    monkeypatch.setattr("time.perf_counter", lambda: hand["s"])

    class Winds(Toy):
        def train_step(self, epoch, iteration, data_dict):
            hand["s"] += 0.1
            return super().train_step(epoch, iteration, data_dict)

    original = DataLoader.__iter__

    def iterate(self):
        hand["s"] += 3 if self.num_workers else 0
        return original(self)

    monkeypatch.setattr(DataLoader, "__iter__", iterate)
    workers = DataLoader(Rows(12), batch_size=2, num_workers=1)
    toy = Winds(settings(tmp_path, max_epoch=2, log_steps=2), workers)
    toy.run()
    said = [line for line in Path(toy.log_file).read_text().splitlines() if "WARNING" in line]
    assert len(said) == 1
    assert "pass persistent_workers=True" in said[0]


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(4))


class Unsized:
    def __iter__(self):
        return iter([[0], [1]])


class Ranked(SequentialSampler):
    rank = "a word of the user's"


DATA = Rows(8)
WEIGHTED = WeightedRandomSampler([1] * 8, 8)
DISTRIBUTED = DistributedSampler(DATA, 2, 0)


@pytest.mark.parametrize(
    ("loader", "level", "text"),
    [
        (DataLoader(DATA, 2, sampler=WEIGHTED), "WARNING", "all that its own WeightedRandomSampler yields"),
        (DataLoader(DATA, batch_sampler=Unsized()), "WARNING", "all that its own Unsized yields"),
        (type("Own", (DataLoader,), {})(DATA, 2), "WARNING", "all that its own SequentialSampler yields"),
        (DataLoader(Stream(), 2), "WARNING", "all that its own Stream yields"),
        (DataLoader(Stream(), 2), "WARNING", "let the data set yield its share: get_rank(), get_world_size()"),
        ([{"x": 1}], "WARNING", "all that its own list yields"),
        (build_dataloader(DATA, batch_sampler=Unsized()), "WARNING", "all that its own Unsized yields"),
        (DataLoader(DATA, 2, sampler=DISTRIBUTED), "INFO", "DistributedSampler has an attribute 'num_replicas'"),
        (build_dataloader(DATA, sampler=DISTRIBUTED), "INFO", "DistributedSampler has an attribute 'num_replicas'"),
        (DataLoader(DATA, batch_sampler=BatchSampler(DISTRIBUTED, 2, False)), "INFO", "attribute 'num_replicas'"),
        (build_dataloader(DATA, sampler=Ranked(DATA)), "INFO", "Ranked has an attribute 'rank'"),
        (build_dataloader(DATA, sampler=WEIGHTED), "INFO", "the processes share what WeightedRandomSampler draws"),
    ],
)
def test_data_that_the_engine_does_not_share_out_by_itself_is_named_with_who_reads_what(loader, level, text):
    hint = sharing_hint(loader, sampler_of(loader))
    assert hint is not None
    assert hint.level == level
    assert text in hint.text


@pytest.mark.parametrize("loader", [DataLoader(DATA, 2, shuffle=True), build_dataloader(DATA, 2, shuffle=True)])
def test_a_data_set_that_the_engine_shares_out_needs_no_words(loader):
    read = adopted(loader)
    assert sharing_hint(read, sampler_of(read)) is None


@pytest.mark.parametrize(
    ("lengths", "totals", "said"),
    [
        ((4, 3), (7, 7), None),
        ((4, 4), (None, None), None),
        ((None, None), (None, None), None),
        ((4, 3), (None, None), "the training loader has different numbers of batches on the processes: 4, 3"),
        ((2, 2), (3, 4), r"the training loader holds other data on each process \(3, 4 batches before"),
    ],
)
def test_numbers_of_batches_that_differ_for_no_reason_are_told(lengths, totals, said):
    hint = length_hint("training loader", lengths, totals)
    assert hint is None if said is None else re.match(said, hint or "")
