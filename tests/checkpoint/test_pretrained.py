"""Files as the field publishes them: weights under any key, beside objects of which nothing is run."""

import argparse
import builtins
import collections
import functools
import os
import pathlib
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.checkpoint.test_weights import Net, Trainer
from tests.toys import ToyEpochTrainer, linear_model, settings
from vision3d_engine import CheckpointError, SingleTester
from vision3d_engine.checkpoint.export import describe_checkpoint, export_weights

SOURCE = Net().state_dict()


def trained_optimizer():
    """An optimizer's state with tensors in it."""
    model = Net()
    optimizer = torch.optim.Adam(model.parameters())
    model.head(model.encoder(torch.ones(1, 3))).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


@pytest.fixture
def foreign(monkeypatch):
    """A package that is installed where the file is written only: a dict with attributes, an object, a list."""

    class EasyDict(dict):
        def __setitem__(self, key, value):
            super().__setitem__(key, value)
            self.__dict__[key] = value

    package = types.ModuleType("easydict")
    classes = (EasyDict, type("Config", (), {}), type("Items", (list,), {}), type("Text", (str,), {}))
    for each in classes:
        each.__module__, each.__qualname__ = "easydict", each.__name__
        setattr(package, each.__name__, each)
    monkeypatch.setitem(sys.modules, "easydict", package)
    yield package
    assert "easydict" not in sys.modules


def itself():
    nest = {"name": "a"}
    nest["parent"] = nest
    return nest


def harmless(package):
    """What lies beside the weights in published files."""
    config = package.Config()
    config.layers, config.device = [1, 2], torch.device("cpu")
    nested = package.EasyDict()
    nested["NAME"], nested["SUB"] = "PointNet", package.EasyDict()
    return {
        "args": argparse.Namespace(lr=0.1, path=pathlib.PurePosixPath("/data"), dtype=np.dtype("U3")),
        "config": config,
        "cfg": nested,
        "class": package.Config,
        "items": package.Items([1, 2]),
        "text": package.Text("a"),
        "counts": collections.defaultdict(list, a=[1]),
        "ordered": collections.OrderedDict(a=1),
        "history": collections.deque([1.0, 2.0], maxlen=5),
        "best": np.float64(0.9),
        "epoch": np.int64(3),
        "mean": np.zeros(3, np.float32),
        "names": np.array(["car", None], dtype=object),
        "kind": np.float32,
        "seed": np.random.RandomState(1),
        "rng": {"torch": torch.get_rng_state()},
        "range": range(3),
        "set": {1, 2},
        "frozen": frozenset({1}),
        "reached": torch.tensor(0.5),
        "scores": {"mIoU": torch.tensor(0.5)},
        "optimizer": {"main": trained_optimizer()},
        "lr_schedulers": [{"base_lrs": [0.1], "last": torch.ones(1)}],
        "epochs": {1: {"loss": torch.ones(2)}},
        7: {"loss": torch.ones(2)},
        "shards": 8,
        "itself": itself(),
        "version": "pcdet+0.5",
    }


KEYS = ["model", "state_dict", "model_state", "base_model", "pipeline", "net", "model_state_dict", "network", "weights"]
NESTS = {key: {key: SOURCE} for key in KEYS} | {
    "any word": {"backbone_v2": SOURCE},
    "deep": {"checkpoint": {"student": {"module": SOURCE}}},
    "module.": {"base_model": {f"module.{name}": value for name, value in SOURCE.items()}},
    "defaultdict": {"state": collections.defaultdict(list, SOURCE)},
}


def write(state, folder, package, new_format=True):
    """Write a file, after which the package of its objects is not installed any more."""
    torch.save(state, folder / "other.pth", _use_new_zipfile_serialization=new_format)
    sys.modules.pop(package.__name__)
    return folder / "other.pth"


def assert_loaded(model):
    assert all(torch.equal(value, SOURCE[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", NESTS)
@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "old"])
def test_the_only_nest_of_tensors_is_the_weights_whatever_lies_beside(name, new_format, foreign, tmp_path):
    path = write(harmless(foreign) | NESTS[name], tmp_path, foreign, new_format)
    toy = Trainer(settings(tmp_path / "run"))
    toy.load_weights(path, strict=True)
    assert_loaded(toy.model)


def test_a_bare_state_dict_may_hold_numbers_too(foreign, tmp_path):
    path = write({**SOURCE, "epoch": 3, "optimizer": trained_optimizer()}, tmp_path, foreign)
    toy = Trainer(settings(tmp_path / "run"))
    toy.load_weights(path, strict=True)
    assert_loaded(toy.model)


def test_a_run_starts_from_such_a_file_by_its_flag(foreign, tmp_path, monkeypatch):
    path = write(harmless(foreign) | {"base_model": linear_model().state_dict()}, tmp_path, foreign)
    monkeypatch.setattr(sys, "argv", ["train.py", "--checkpoint", str(path)])
    toy = ToyEpochTrainer(settings(tmp_path / "run"), lr=0.0)
    torch.nn.init.zeros_(toy.model.weight)
    toy.run()
    assert torch.equal(toy.model.weight, linear_model().weight)


def test_a_tester_and_the_commands_take_such_a_file_as_well(foreign, tmp_path):
    path = write(harmless(foreign) | {"base_model": SOURCE}, tmp_path, foreign)

    class Tester(SingleTester):
        def __init__(self):
            super().__init__(settings(tmp_path / "test"))
            self.register_model(Net())

        def test_step(self, iteration, data_dict): ...

        def eval_step(self, iteration, data_dict, output_dict): ...

    tester = Tester()
    tester.load(str(path))
    assert_loaded(tester.model)
    assert "weights: 4 tensors" in describe_checkpoint(path)
    assert export_weights(path, tmp_path / "out.safetensors") == 4


def test_several_nests_are_an_error_that_lists_them_and_a_key_chooses(foreign, tmp_path):
    half = {name: value / 2 for name, value in SOURCE.items() if "bias" in name}
    path = write({"model": SOURCE, "ema": {"state_dict": half}}, tmp_path, foreign)
    toy = Trainer(settings(tmp_path / "run"))
    several = r"several nests of tensors: 'model' \(4 tensors\), 'ema.state_dict' \(2 tensors\).*key='model'"
    with pytest.raises(CheckpointError, match=several):
        toy.load_weights(path)
    with pytest.raises(CheckpointError, match=r"no weights under 'ema', only under 'model' \(4.*'ema.state_dict' \(2"):
        toy.load_weights(path, key="ema")
    toy.load_weights(path, key="ema.state_dict")
    assert torch.equal(toy.model.head.bias, half["head.bias"])
    toy.load_weights(path, key="model", strict=True)
    assert_loaded(toy.model)


def test_a_checkpoint_of_the_engine_has_its_weights_under_model_whatever_else_is_saved(foreign, tmp_path):
    state = {"metadata": {"epoch": 1}, "model": SOURCE, "states": {"average": {"a": torch.ones(3)}}}
    toy = Trainer(settings(tmp_path / "run"))
    toy.load_weights(write(state, tmp_path, foreign), strict=True)
    assert_loaded(toy.model)


def test_what_a_script_has_allowed_is_still_loaded(tmp_path):
    torch.save({"model": SOURCE, "text": functools.partial(dict, a=1)}, tmp_path / "other.pth")
    toy = Trainer(settings(tmp_path / "run"))
    with torch.serialization.safe_globals([functools.partial, dict]):
        toy.load_weights(tmp_path / "other.pth", strict=True)
        assert functools.partial in torch.serialization.get_safe_globals()
    assert_loaded(toy.model)


def test_an_object_among_the_weights_is_an_error_that_names_it_or_is_left_out(foreign, tmp_path):
    path = write({"model": {**SOURCE, "head.packed": foreign.Config()}}, tmp_path, foreign)
    toy = Trainer(settings(tmp_path / "run"))
    message = r"among the weights of .*'head\.packed' is a python object \(easydict\.Config\), which is not loaded"
    with pytest.raises(CheckpointError, match=message):
        toy.load_weights(path)
    toy.load_weights(path, exclude="*.packed", strict=True)
    assert_loaded(toy.model)


@pytest.mark.parametrize("whole", [True, False], ids=["alone", "under a key"])
def test_a_pickled_model_is_an_error_that_names_its_class(whole, tmp_path):
    torch.save(Net() if whole else {"model": Net()}, tmp_path / "other.pth")
    toy = Trainer(settings(tmp_path / "run"))
    with pytest.raises(CheckpointError, match=r"a python object \(tests\.checkpoint\.test_weights\.Net\)"):
        toy.load_weights(tmp_path / "other.pth")


def test_a_file_without_weights_is_an_error_that_says_what_is_expected(tmp_path):
    torch.save({"epoch": 3, "model": {"a": np.zeros(3)}}, tmp_path / "other.pth")
    toy = Trainer(settings(tmp_path / "run"))
    message = r"holds no weights \(its keys: epoch, model\); expected tensors under names"
    with pytest.raises(CheckpointError, match=message):
        toy.load_weights(tmp_path / "other.pth")


class Call:
    """Pickles as a call, which python's own unpickler would make."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


def calls(path):
    """Calls that leave a file when they are made."""
    code = f"__import__('pathlib').Path({str(path)!r}).touch()"
    return {
        "eval": Call(builtins.eval, code),
        "exec": Call(builtins.exec, code),
        "process": Call(subprocess.run, ["touch", str(path)]),
        "system": Call(os.system, f"touch {path}"),
        "what a call returns": Call(functools.partial(builtins.eval, code)),
    }


# What torch refuses whoever allows it.
REFUSED = {"system": r"GLOBAL \w+\.system", "what a call returns": "unrecognized function <functools.partial"}


@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "old"])
@pytest.mark.parametrize("name", calls(""))
def test_nothing_of_a_file_is_ever_run(name, new_format, tmp_path):
    path = tmp_path / "other.pth"
    state = {"model": SOURCE, "evil": calls(tmp_path / "ran")[name]}
    torch.save(state, path, _use_new_zipfile_serialization=new_format)
    toy = Trainer(settings(tmp_path / "run"))
    if name in REFUSED:
        with pytest.raises(CheckpointError, match=f"would run code, so it is refused.*torch says: .*{REFUSED[name]}"):
            toy.load_weights(path)
    else:
        toy.load_weights(path, strict=True)
        assert_loaded(toy.model)
    assert not (tmp_path / "ran").exists()
    torch.load(path, weights_only=False)
    assert (tmp_path / "ran").exists(), "the call does leave a file"


def test_a_pickle_protocol_that_torch_does_not_read_as_data_is_an_error_that_says_so(tmp_path):
    torch.save({"model": SOURCE}, tmp_path / "other.pth", pickle_protocol=4)
    toy = Trainer(settings(tmp_path / "run"))
    with pytest.warns(UserWarning, match="protocol 4"), pytest.raises(CheckpointError, match="or is written in a way"):
        toy.load_weights(tmp_path / "other.pth")


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize(
    ("old", "new", "rename"),
    [("backbone.", "", {"backbone.": ""}), ("", "encoder.", {"": "encoder."}), ("net.", "enc.", {"net.": "enc."})],
)
def test_names_that_differ_by_their_beginning_are_an_error_that_knows_the_renaming(old, new, rename, suffix, tmp_path):
    state = {f"{old}{name}": value for name, value in SOURCE.items()}
    (save_file if suffix == "safetensors" else torch.save)(state, tmp_path / f"other.{suffix}")
    toy = Trainer(settings(tmp_path / "run"))
    if new:
        toy.model = torch.nn.ModuleDict({new.rstrip("."): toy.model})
    with pytest.raises(CheckpointError) as caught:
        toy.load_weights(tmp_path / f"other.{suffix}")
    assert str(caught.value).endswith(f"with load_weights(path, rename={rename}) 4 more names fit")
    toy.load_weights(tmp_path / f"other.{suffix}", rename=rename, strict=True)


def test_a_report_knows_the_renaming_of_what_did_not_fit(tmp_path):
    state = {name.replace("head.", "module.cls."): value for name, value in SOURCE.items()}
    torch.save({"model_state": state}, tmp_path / "other.pth")
    toy = Trainer(settings(tmp_path / "run"))
    toy.load_weights(tmp_path / "other.pth")
    report = pathlib.Path(toy.log_file).read_text()
    assert "with load_weights(path, rename={'module.cls.': 'head.'}) 2 more names fit" in report


def test_weights_of_another_shape_are_said_beside_those_that_are_taken(foreign, tmp_path):
    path = write(harmless(foreign) | {"model_state": Net(classes=9).state_dict()}, tmp_path, foreign)
    toy = Trainer(settings(tmp_path / "run"))
    toy.load_weights(path)
    report = pathlib.Path(toy.log_file).read_text()
    assert "shape differs: 'head.weight' is (9, 4), the model has (2, 4)" in report
    with pytest.raises(CheckpointError, match=r"shape differs: 'head.weight' is \(9, 4\)"):
        toy.load_weights(path, strict=True)
