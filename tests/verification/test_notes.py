"""What is noted of a trainer at a moment."""

import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from tests.toys import Rows, ToyEpochTrainer, rows_loader, settings
from vision3d_engine.verification.notes import parts_of


class Warmup:
    def __init__(self):
        self.steps = 3


@pytest.fixture
def trainer(tmp_path):
    return ToyEpochTrainer(settings(tmp_path))


def attributes(trainer):
    return parts_of(trainer, "after_train", ())["attributes"]


def test_attributes_that_may_count_or_draw_are_noted_with_those_of_hooks_data_sets_and_own_objects(trainer):
    trainer.count, trainer.own, trainer.tensor = 3, random.Random(1), torch.ones(3)
    trainer.warmup, trainer.history = Warmup(), [1.5, {"a": 2}]
    trainer.train_loader.dataset.shift = 2.0
    trainer.model.seen = 4
    noted = attributes(trainer)
    assert noted["self.count"] == "3"
    assert noted["self.history"] == "[1.5, [[a, 2]]]"
    assert noted["self.warmup.steps"] == "3"
    assert noted["self.train_loader.dataset.shift"] == "2.0"
    assert noted["self.model.seen"] == "4"
    assert {"self.own", "self.tensor"} < noted.keys()


@pytest.mark.parametrize(
    ("make", "draw"),
    [
        (lambda: random.Random(0), lambda own: own.random()),
        (lambda: np.random.default_rng(0), lambda own: own.random()),
        (lambda: torch.Generator().manual_seed(0), lambda own: torch.rand(1, generator=own)),
    ],
)
def test_a_generator_is_another_one_once_it_was_drawn_from(make, draw, trainer):
    trainer.own = make()
    before = attributes(trainer)["self.own"]
    assert attributes(trainer)["self.own"] == before
    draw(trainer.own)
    assert attributes(trainer)["self.own"] != before


def test_texts_paths_and_large_data_are_no_attributes_to_note(trainer):
    trainer.title, trainer.cloud = "text", torch.zeros(200_000)
    noted = attributes(trainer)
    assert not {"self.title", "self.cloud", "self.output_dir"} & noted.keys()


def test_a_buffer_that_is_not_saved_is_among_weights_and_attributes(trainer):
    trainer.model.register_buffer("size", torch.ones(1), persistent=False)
    parts = parts_of(trainer, "after_train_epoch", (1, {"loss": torch.tensor(0.5), "text": "no number"}))
    assert "['size']" in parts["weights"]
    assert "self.model.size, a buffer with persistent=False" in parts["attributes"]
    assert parts["results"] == {"loss": "0.5"}


def test_a_loader_without_a_data_set_is_noted_as_well(trainer):
    trainer.train_loader = [{"x": torch.ones(2)}]
    trainer.val_loader = DataLoader(Rows(2))
    assert "batch" in parts_of(trainer, "before_train_step", (1, 1, trainer.train_loader[0]))


def test_an_attribute_that_holds_itself_or_is_very_deep_is_noted_too(trainer):
    trainer.tree, trainer.deep = [1], []
    trainer.tree.append(trainer.tree)
    for _ in range(3000):
        trainer.deep = [trainer.deep]
    assert attributes(trainer)["self.tree"] == "[1, ...]"


def test_what_counts_in_the_data_of_a_validation_set_is_noted_by_the_name_of_the_set(trainer):
    trainer.register_loader(rows_loader(), {"easy": rows_loader(), "hard": rows_loader()})
    trainer.val_loader["hard"].dataset.shift = 2.0
    assert attributes(trainer)["self.val_loader['hard'].dataset.shift"] == "2.0"
