"""Weights from any code's file: what is taken, under which name, and what is said of the rest."""

from pathlib import Path
from typing import ClassVar

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tests.toys import ToyEpochTrainer, settings
from vision3d_engine import CheckpointError
from vision3d_engine.checkpoint.loading import with_names_of


class Net(nn.Module):
    def __init__(self, classes=2):
        super().__init__()
        self.encoder = nn.Linear(3, 4)
        self.head = nn.Linear(4, classes)


class Trainer(ToyEpochTrainer):
    """A trainer around another model; it only loads."""

    def _register(self, train_loader, val_loader, lr):
        self.calls = []
        self.register_loader(train_loader, val_loader)
        self.register_model(Net())


WRAPPED = {
    "bare": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "epoch": 7},
    "model": lambda state: {"model": state},
    "model_state_dict": lambda state: {"model_state_dict": state},
    "module.": lambda state: {f"module.{key}": value for key, value in state.items()},
    "_orig_mod.": lambda state: {"model": {f"_orig_mod.{key}": value for key, value in state.items()}},
}


@pytest.mark.parametrize("name", WRAPPED)
def test_weights_of_many_makes_are_found(name, tmp_path):
    source = Net().state_dict()
    torch.save(WRAPPED[name](source), tmp_path / "other.pth")
    toy = Trainer(settings(tmp_path / "run"))
    toy.load_weights(tmp_path / "other.pth", strict=True)
    assert all(torch.equal(value, source[key]) for key, value in toy.model.state_dict().items())


def test_safetensors_are_weights_too(tmp_path):
    source = Net().state_dict()
    save_file(source, tmp_path / "other.safetensors")
    toy = Trainer(settings(tmp_path / "run"))
    toy.load_weights(tmp_path / "other.safetensors")
    assert torch.equal(toy.model.head.weight, source["head.weight"])
    (tmp_path / "other.safetensors").write_bytes(b"x" * 50)
    with pytest.raises(CheckpointError, match="damaged or not a safetensors file"):
        toy.load_weights(tmp_path / "other.safetensors")


def test_fine_tuning_takes_what_is_chosen_and_says_what_is_left(tmp_path):
    source = Net(classes=9).state_dict()
    torch.save(source, tmp_path / "other.pth")
    toy = Trainer(settings(tmp_path / "run"))
    head = toy.model.head.weight.clone()
    log_file = toy.log_file
    toy.load_weights(tmp_path / "other.pth", exclude="*.bias")
    assert torch.equal(toy.model.encoder.weight, source["encoder.weight"])
    assert not torch.equal(toy.model.encoder.bias, source["encoder.bias"])
    assert torch.equal(toy.model.head.weight, head)
    text = Path(log_file).read_text()
    assert "not loaded: missing 'encoder.bias' (4,), 'head.bias' (2,)" in text
    assert "shape differs: 'head.weight' is (9, 4), the model has (2, 4)" in text


def test_names_are_renamed_by_their_beginnings(tmp_path):
    source = {
        f"net.backbone.{key.partition('.')[2]}": value for key, value in Net().state_dict().items() if "enc" in key
    }
    torch.save(source, tmp_path / "other.pth")
    toy = Trainer(settings(tmp_path / "run"))
    toy.load_weights(tmp_path / "other.pth", rename={"net.": "x.", "net.backbone.": "encoder."}, include=["net.*"])
    assert torch.equal(toy.model.encoder.bias, source["net.backbone.bias"])


def test_a_file_of_which_nothing_fits_is_an_error_that_shows_both_sides(tmp_path):
    torch.save({"a.weight": torch.ones(2)}, tmp_path / "other.pth")
    toy = Trainer(settings(tmp_path / "run"))
    with pytest.raises(CheckpointError, match=r"nothing in .*: the file has a\.weight; the model has encoder\.weight"):
        toy.load_weights(tmp_path / "other.pth")


def test_strict_refuses_with_one_report(tmp_path):
    torch.save(Net(classes=9).state_dict() | {"extra": torch.ones(1)}, tmp_path / "other.pth")
    toy = Trainer(settings(tmp_path / "run"))
    before = toy.model.encoder.weight.clone()
    with pytest.raises(CheckpointError, match=r"unexpected 'extra' \(1,\); shape differs: 'head\.weight'"):
        toy.load_weights(tmp_path / "other.pth", strict=True)
    assert torch.equal(toy.model.encoder.weight, before), "nothing is loaded halfway"


class TestNamesOfStates:
    """A state of a module that was wrapped otherwise when it was saved."""

    own: ClassVar = {"n": 0, "module.a.weight": 1, "module.b.weight": 2}

    @pytest.mark.parametrize("prefix", ["", "module.", "module.module.", "module._orig_mod."])
    def test_wrappers_in_names_do_not_matter(self, prefix):
        state = {"n": 7, f"{prefix}a.weight": 8, f"{prefix}b.weight": 9}
        assert with_names_of(self.own, state) == {"n": 7, "module.a.weight": 8, "module.b.weight": 9}

    def test_nests_are_followed_and_other_names_kept(self):
        state = {"decay": 0.9, "weights": {"module.a": 1}, "groups": [{"module.a": 1}], 0: "zero"}
        renamed = with_names_of({"decay": 0.5, "weights": {"a": 0}, "groups": []}, state)
        assert renamed == {**state, "weights": {"a": 1}}

    def test_what_fits_or_is_ambiguous_is_returned_as_it_is(self):
        for state in ({**self.own}, {"a": 1, "module.a": 2}, {}, [1]):
            assert with_names_of(self.own, state) is state
        state = {"module.a": 1}
        assert with_names_of({"a": 1, "module.a": 2}, state) is state
