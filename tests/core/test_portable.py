"""States of a user come back as they were, or are refused before the first step."""

import datetime as dt
import random
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from enum import Enum, Flag, IntEnum, IntFlag
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import numpy as np
import pytest
import torch

from tests.toys import ToyEpochTrainer, rows_loader, settings
from vision3d_engine import CheckpointError, RegistrationError
from vision3d_engine.checkpoint.files import plain_state
from vision3d_engine.core.portable import decoded, encoded


class Mode(str, Enum):  # noqa: UP042  as scripts have it
    WARM = "warm"
    COLD = "cold"


class Level(IntEnum):
    LOW = 1


class Part(Flag):
    WALL = 1
    FLOOR = 2


class Bits(IntFlag):
    LEFT = 1
    RIGHT = 2


class Pair(NamedTuple):
    first: Any
    second: Any


class Queue(deque):
    pass


class Bag(set):
    pass


class Row(list):
    pass


class Table(dict):
    pass


Wrong = namedtuple("Named", "a b")  # noqa: PYI024  found under another name


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
    "float32": np.float32(0.1),
    "float64": np.float64(0.1),
    "int8": np.int8(-3),
    "numpy bool": np.bool_(True),
    "complex": np.complex64(1j),
    "numpy text": np.str_("x"),
    "enum keys": {Mode.WARM: 1, Level.LOW: 2, "text": 3},
    "other keys": {(1, Mode.WARM): 1, Path("a"): 2, dt.date(2026, 1, 2): 3, frozenset({1}): 4, np.int64(3): 5},
    "the engine's own key": {"vision3d_engine.kind": "set", "value": [1]},
    "flags": Part.WALL | Part.FLOOR,
    "no flag": Part(0),
    "one flag": Part.FLOOR,
    "number flags": Bits.LEFT | Bits.RIGHT,
    "number flags beyond": Bits(9),
    "named tuple": Pair({1}, (2, Mode.COLD)),
    "counter": Counter("aab"),
    "ordered": OrderedDict(b=1, a=OrderedDict(c={2})),
    "ordered by enums": OrderedDict({Mode.COLD: 1, Mode.WARM: 2}),
    "default": defaultdict(list, {"a": [1], Mode.WARM: [2]}),
    "default of nothing": defaultdict(None, {"a": 1}),
    "windows path": PureWindowsPath("a\\b"),
    "pure path": PurePosixPath("a/b"),
    "second 2:30": dt.datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin")),
    "named offset": dt.datetime(2026, 1, 2, tzinfo=dt.timezone(dt.timedelta(hours=1), "CET")),
}


def through_a_file(value, tmp_path):
    torch.save(plain_state(encoded(value)), tmp_path / "a.pth")
    return decoded(torch.load(tmp_path / "a.pth", weights_only=True))


def assert_same(found, value):
    """Classes, values, and what == does not look at."""
    assert type(found) is type(value)
    assert found == value
    for name in ("maxlen", "default_factory", "fold", "tzinfo", "dtype"):
        assert getattr(found, name, None) == getattr(value, name, None)
    if isinstance(value, dict | OrderedDict):
        assert [*map(repr, found.items())] == [*map(repr, value.items())]


@pytest.mark.parametrize("name", VALUES)
def test_a_value_comes_back_as_it_was(name, tmp_path):
    value = VALUES[name]
    found = through_a_file({"it": value}, tmp_path)["it"]
    if isinstance(value, np.ndarray):
        assert found.dtype == value.dtype
        assert np.array_equal(found, value)
    else:
        assert_same(found, value)


def test_what_is_in_a_named_tuple_comes_back_as_it_was(tmp_path):
    found = through_a_file(Pair(np.arange(3), {1}), tmp_path)
    assert type(found) is Pair
    assert isinstance(found.first, np.ndarray)
    assert found.second == {1}


@pytest.mark.parametrize("order", ["C", "F"])
def test_an_array_keeps_its_order_in_memory(order, tmp_path):
    value = np.asarray(np.arange(6.0).reshape(2, 3), order=order)
    assert through_a_file(value, tmp_path).strides == value.strides


def test_a_name_of_a_zone_is_kept(tmp_path):
    value = VALUES["named offset"]
    assert through_a_file(value, tmp_path).tzname() == "CET"


OLD = {
    "enum": ({"module": Mode.__module__, "class": "Mode", "name": "COLD"}, Mode.COLD),
    "array": (torch.arange(3), np.arange(3)),
    "datetime": ("2026-01-02T03:04:05+00:00", dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)),
    "path": ("a/b", Path("a/b")),
    "deque": ([[1], 3], deque([1], maxlen=3)),
    "set": ([1, 2], {1, 2}),
}


@pytest.mark.parametrize("kind", OLD)
def test_forms_of_older_checkpoints_are_read(kind):
    written, value = OLD[kind]
    found = decoded({"vision3d_engine.kind": kind, "value": written})
    assert type(found) is type(value)
    assert np.array_equal(found, value) if kind == "array" else found == value


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
    [
        Opaque(),
        lambda: 1,
        np.array(["text"]),
        np.array([Opaque()]),
        np.ma.array([1.0, 2.0], mask=[0, 1]),
        np.ones((2, 2)).view(np.matrix),
        np.array([1.0], dtype=np.dtype(float).newbyteorder()),
        np.array([1], dtype=np.longdouble),
        np.longdouble(1),
        Queue([1]),
        Bag([1]),
        Row([1]),
        Table(a=1),
        defaultdict(lambda: 1),
        Wrong(1, 2),
        torch.ones(2, 2).max(0),
        dt.datetime(2026, 1, 2, tzinfo=type("Zone", (dt.tzinfo,), {})()),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_no_checkpoint_can_hold_is_refused_before_the_first_step(value, tmp_path):
    toy = ToyEpochTrainer(settings(tmp_path), rows_loader(8))
    toy.register_state("curriculum", Holding(value))
    with pytest.raises(RegistrationError, match=r"'curriculum' .* could not be saved: state\['deep'\]\[0\].* is "):
        toy.run()
    assert "train_step" not in str(toy.calls)


def test_a_nested_tensor_is_refused_by_its_path_wherever_it_is():
    value = {"sizes": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)}
    for hold in (encoded, plain_state):
        with pytest.raises(CheckpointError, match=r"state\['sizes'\] is .*value\.unbind\(\)"):
            hold(value)


@pytest.mark.parametrize("value", [np.ones(2, dtype=">f8"), np.longdouble(1), np.ma.array([1.0])])
def test_numbers_that_torch_has_not_are_refused_by_their_path_in_any_state(value):
    with pytest.raises(CheckpointError, match=r"state\['lr'\] is numpy.*, which a checkpoint cannot hold"):
        plain_state({"lr": value})


def test_an_enum_defined_in_a_function_is_refused_since_a_resume_would_not_find_it():
    class Local(Enum):
        A = 1

    with pytest.raises(CheckpointError, match=r"state\['mode'\] is .*Local.*define it in a script, outside functions"):
        encoded({"mode": Local.A})


def test_an_optimizer_is_tried_out_as_it_is_saved(tmp_path):
    class Remembering(torch.optim.SGD):
        def state_dict(self):
            return super().state_dict() | {"seen": {1, 2}}

    toy = ToyEpochTrainer(settings(tmp_path), rows_loader(8))
    toy.optimizer = None
    toy.register_optimizer(Remembering(toy.model.parameters(), lr=0.1))
    with pytest.raises(RegistrationError, match=r"'optimizer' .* could not be saved: state\['seen'\] is builtins\.set"):
        toy.run()
    assert "train_step" not in str(toy.calls)


def test_a_named_tuple_whose_fields_have_changed_is_named():
    value = encoded({"pair": Pair(1, 2)})
    value["pair"]["value"]["fields"] = {"first": 1, "third": 2}
    with pytest.raises(CheckpointError, match=r"Pair\(first, third\), which this script does not have"):
        decoded(value)


def test_an_enum_that_the_script_no_longer_has_is_named(tmp_path):
    value = encoded({"mode": Mode.COLD})
    value["mode"]["value"]["class"] = "Gone"
    with pytest.raises(Exception, match=r"Gone\.COLD, which this script does not have"):
        decoded(value)
