"""Loads that nothing may lose in silence: names that collide, types that lose numbers, what torch breaks off."""

import pytest
import torch
from torch import nn

from tests.toys import ToyEpochTrainer, settings
from vision3d_engine import CheckpointError
from vision3d_engine.checkpoint.loading import load_weights

GOOD = {"0.weight": torch.ones(1, 2), "0.bias": torch.zeros(1)}


def load(folder, model, state, **options):
    torch.save(state, folder / "other.pth")
    return load_weights(model, folder / "other.pth", folder, **options)[2]


COLLIDING = {
    "renamed": ({"a.weight": torch.ones(1, 2), "b.weight": torch.zeros(1, 2)}, {"a.": "0.", "b.": "0."}, "a.weight"),
    "compiled": ({**GOOD, "_orig_mod.0.weight": torch.zeros(1, 2)}, None, "_orig_mod.0.weight"),
    "nests": ({"a": {"b": GOOD}, "a.b": GOOD}, None, "a.b"),
}


@pytest.mark.parametrize("name", COLLIDING)
def test_two_names_of_a_file_that_become_one_of_the_model_are_an_error_that_names_both(name, tmp_path):
    state, rename, named = COLLIDING[name]
    with pytest.raises(CheckpointError, match="both become") as caught:
        load(tmp_path, nn.Sequential(nn.Linear(2, 1)), state, rename=rename)
    assert named in str(caught.value)


@pytest.mark.parametrize("strict", [True, False])
def test_complex_weights_are_no_weights_of_a_real_parameter(strict, tmp_path):
    model = nn.Sequential(nn.Linear(2, 1))
    before, state = model[0].weight.clone(), {**GOOD, "0.weight": torch.ones(1, 2) * 1j}
    words = "type differs: '0.weight' is torch.complex64, the model has torch.float32"
    if strict:
        with pytest.raises(CheckpointError, match=words):
            load(tmp_path, model, state)
    else:
        assert load(tmp_path, model, state, strict=False) == [words]
    assert torch.equal(model[0].weight, before)


def test_half_precision_is_loaded_into_full(tmp_path):
    model = nn.Sequential(nn.Linear(2, 1))
    assert load(tmp_path, model, {name: value.half() for name, value in GOOD.items()}) == []
    assert torch.equal(model[0].weight, GOOD["0.weight"])


class Extra(nn.Module):
    version = 1

    def get_extra_state(self):
        return {"version": self.version}

    def set_extra_state(self, state):
        if state["version"] > 2:
            raise ValueError("version 3 is unknown")
        self.version = state["version"]


def test_extra_state_that_is_no_tensor_is_loaded(tmp_path):
    model = nn.Sequential(nn.Linear(2, 1), Extra())
    assert load(tmp_path, model, {**GOOD, "1._extra_state": {"version": 2}}) == []
    assert model[1].version == 2


def refusing():
    model = nn.Sequential(nn.Linear(2, 1))
    model.register_load_state_dict_post_hook(lambda *_: (_ for _ in ()).throw(KeyError("hook")))
    return model


BROKEN = {
    "extra state": (lambda: nn.Sequential(nn.Linear(2, 1), Extra()), {**GOOD, "1._extra_state": {"version": 3}}),
    "hook": (refusing, GOOD),
    "sparse": (lambda: nn.Sequential(nn.Linear(2, 1)), {**GOOD, "0.weight": torch.ones(1, 2).to_sparse()}),
    "meta": (lambda: nn.Sequential(nn.Linear(2, 1)), {**GOOD, "0.weight": torch.ones(1, 2, device="meta")}),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_load_that_is_broken_off_is_an_error_that_says_that_the_model_may_be_loaded_in_part(name, tmp_path):
    make, state = BROKEN[name]
    with pytest.raises(CheckpointError, match="may be loaded in part"):
        load(tmp_path, make(), state)


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.add_module("0", nn.Linear(2, 1))

    def load_state_dict(self, state_dict):
        return super().load_state_dict(state_dict)


def test_a_model_whose_own_way_to_load_knows_no_strict_is_loaded(tmp_path):
    model = Own()
    assert load(tmp_path, model, GOOD) == []
    assert torch.equal(model.state_dict()["0.weight"], GOOD["0.weight"])


def test_a_tiny_file_that_asks_for_a_huge_memo_is_an_error(tmp_path):
    path = tmp_path / "other.pth"
    path.write_bytes(b"\x80\x02Nr" + (2**20).to_bytes(4, "little") + b".")
    with pytest.raises(CheckpointError, match="numbers an entry 1048576, more than it can hold"):
        load_weights(nn.Linear(2, 1), path, tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exclude": "head"}, r"exclude='head' matches no name in .*: 'head\.\*'"),
        ({"include": ["0.*", "encoder."]}, r"include='encoder\.' matches no name .*: 'encoder\.\*'"),
        ({"rename": {"nope.": ""}}, r"rename: no name in .* begins with nope\."),
    ],
)
def test_a_pattern_that_selects_nothing_is_an_error_that_says_how_patterns_are_written(options, message, tmp_path):
    trainer = ToyEpochTrainer(settings(tmp_path / "run"))
    torch.save({"state_dict": {"0.weight": torch.ones(1), "head.weight": torch.ones(1)}}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=message):
        trainer.load_weights(tmp_path / "a.pth", **options)
