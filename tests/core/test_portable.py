"""States of a user come back as they were, or are refused before the first step."""

import datetime as dt
import random
from collections import deque
from enum import Enum, IntEnum
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.toys import ToyEpochTrainer, rows_loader, settings
from vision3d_engine import RegistrationError
from vision3d_engine.checkpoint.files import plain_state
from vision3d_engine.core.portable import decoded, encoded


class Mode(str, Enum):  # noqa: UP042  as scripts have it
    WARM = "warm"
    COLD = "cold"


class Level(IntEnum):
    LOW = 1


VALUES = {
    "text enum": Mode.COLD,
    "number enum": Level.LOW,
    "array": np.arange(6, dtype=np.uint16).reshape(2, 3),
    "bools": np.array([True, False]),
    "set": {1, 2, "x"},
    "frozen": frozenset({3}),
    "deque": deque([1, Mode.WARM], maxlen=3),
    "path": Path("/data/scans"),
    "datetime": dt.datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=dt.UTC),
    "date": dt.date(2026, 1, 2),
    "timedelta": dt.timedelta(days=-1, microseconds=3),
    "tuple": (1, [Mode.WARM, None], {"deep": {2}}),
    "numbers": {1: 2.5, "big": 2**127, "none": None},
}


def through_a_file(value, tmp_path):
    torch.save(plain_state(encoded(value)), tmp_path / "a.pth")
    return decoded(torch.load(tmp_path / "a.pth", weights_only=True))


@pytest.mark.parametrize("name", VALUES)
def test_a_value_comes_back_as_it_was(name, tmp_path):
    value = VALUES[name]
    found = through_a_file({"it": value}, tmp_path)["it"]
    assert type(found) is type(value)
    if isinstance(value, np.ndarray):
        assert found.dtype == value.dtype
        assert np.array_equal(found, value)
    else:
        assert found == value
        assert getattr(found, "maxlen", None) == getattr(value, "maxlen", None)


GENERATORS = {
    "torch": lambda: torch.Generator().manual_seed(3),
    "pcg": lambda: np.random.default_rng(3),
    "philox": lambda: np.random.Generator(np.random.Philox(3)),
    "twister": lambda: np.random.Generator(np.random.MT19937(3)),
    "old numpy": lambda: np.random.RandomState(3),
    "python": lambda: random.Random(3),
}


def draw(generator):
    if isinstance(generator, torch.Generator):
        return torch.rand(3, generator=generator).tolist()
    return [generator.random() for _ in range(3)]


@pytest.mark.parametrize("name", GENERATORS)
def test_a_generator_is_registered_as_it_is_and_goes_on_where_it_stood(name, tmp_path):
    class Drawing(ToyEpochTrainer):
        def __init__(self, cfg):
            super().__init__(cfg, rows_loader(8))
            self.generator = self.register_state("generator", GENERATORS[name]())
            self.drawn = []

        def before_train_epoch(self, epoch):
            self.drawn.append(draw(self.generator))

    straight = Drawing(settings(tmp_path / "straight", max_epoch=3))
    straight.run()
    Drawing(settings(tmp_path / "broken", max_epoch=2)).run()
    resumed = Drawing(settings(tmp_path / "broken", max_epoch=3, resume=True))
    resumed.run()
    assert resumed.drawn == straight.drawn[2:]


class Holding:
    def __init__(self, value):
        self.value = value

    def state_dict(self):
        return {"deep": [self.value]}

    def load_state_dict(self, state):
        self.value = state["deep"][0]


class Opaque:
    pass


@pytest.mark.parametrize(
    "value",
    [Opaque(), lambda: 1, np.array(["text"]), np.array([Opaque()])],
    ids=["object", "function", "texts", "objects"],
)
def test_what_no_checkpoint_can_hold_is_refused_before_the_first_step(value, tmp_path):
    toy = ToyEpochTrainer(settings(tmp_path), rows_loader(8))
    toy.register_state("curriculum", Holding(value))
    with pytest.raises(RegistrationError, match=r"'curriculum' .* could not be saved: state\['deep'\]\[0\] is "):
        toy.run()
    assert "train_step" not in str(toy.calls)


def test_an_enum_that_the_script_no_longer_has_is_named(tmp_path):
    value = encoded({"mode": Mode.COLD})
    value["mode"]["value"]["class"] = "Gone"
    with pytest.raises(Exception, match=r"Gone\.COLD, which this script does not have"):
        decoded(value)
