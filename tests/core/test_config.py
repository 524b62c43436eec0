"""Configs of every kind, and what is said about wrong ones."""

import argparse
import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from easydict import EasyDict
from omegaconf import OmegaConf
from pydantic import BaseModel

from vision3d_engine import ConfigError, load_config
from vision3d_engine.core.config import read_settings

PLAIN = {"exp": {"output_dir": "here", "seed": 3}, "trainer": {"max_epoch": 7}, "model": {"width": 64}}


@dataclasses.dataclass
class Section:
    output_dir: str = "here"
    seed: int = 3


@dataclasses.dataclass
class Trainer:
    max_epoch: int = 7


@dataclasses.dataclass
class Whole:
    exp: Section = dataclasses.field(default_factory=Section)
    trainer: Trainer = dataclasses.field(default_factory=Trainer)


class Exp(BaseModel):
    output_dir: str = "here"
    seed: int = 3


class Model(BaseModel):
    exp: Exp = Exp()
    trainer: dict = {"max_epoch": 7}


KINDS = {
    "dict": PLAIN,
    "EasyDict": EasyDict(PLAIN),
    "OmegaConf": OmegaConf.create({**PLAIN, "trainer": {"max_epoch": "${model.epochs}"}, "model": {"epochs": 7}}),
    "dataclass": Whole(),
    "Namespace": argparse.Namespace(exp=argparse.Namespace(**PLAIN["exp"]), trainer=SimpleNamespace(max_epoch=7)),
    "pydantic": Model(),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_config_of_any_kind_is_read(kind):
    settings, warnings = read_settings(KINDS[kind])
    assert (str(settings.exp.output_dir), settings.exp.seed, settings.trainer.max_epoch) == ("here", 3, 7)
    assert warnings == []


def test_no_config_gives_the_defaults():
    settings, _ = read_settings(None)
    assert (settings.trainer.grad_acc_steps, settings.trainer.grad_acc_reduction) == (1, "mean")


def test_numpy_numbers_are_numbers():
    assert read_settings({"trainer": {"max_epoch": np.int64(4)}})[0].trainer.max_epoch == 4


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        ({"grad_acc_steps": 0}, r"cfg\.trainer\.grad_acc_steps is 0; it must be greater than or equal to 1"),
        ({"grad_acc_steps": "two"}, r"cfg\.trainer\.grad_acc_steps is 'two'; it must be a valid integer"),
        ({"grad_acc_reduction": "avg"}, r"is 'avg'; it must be 'mean' or 'sum'"),
        ({"max_epochs": 3}, r"cfg\.trainer\.max_epochs is unknown; did you mean 'max_epoch'\?"),
    ],
)
def test_a_wrong_setting_is_named_with_what_was_got_and_what_is_allowed(trainer, message):
    with pytest.raises(ConfigError, match=message):
        read_settings({"trainer": trainer})


def test_all_mistakes_come_together():
    with pytest.raises(ConfigError) as caught:
        read_settings({"exp": {"seed": "x"}, "trainer": {"max_epoch": 0, "log_step": 5}})
    text = str(caught.value)
    assert "3 settings are wrong" in text
    assert all(part in text for part in ("cfg.exp.seed is 'x'", "cfg.trainer.max_epoch is 0", "log_step is unknown"))


def test_a_near_miss_in_an_object_where_scripts_keep_keys_of_their_own_is_a_warning():
    cfg = EasyDict({"exp": {"working_dir": "w"}, "trainer": {"max_epochs": 3, "my_own": 1}})
    _, warnings = read_settings(cfg)
    assert warnings == ["cfg.trainer.max_epochs is unknown; did you mean 'max_epoch'?"]


def test_a_config_that_is_no_config_is_refused():
    with pytest.raises(ConfigError, match="cfg is a int; expected a dict"):
        read_settings(3)
    with pytest.raises(ConfigError, match=r"cfg\.trainer is \[1\]; expected a group of settings"):
        read_settings({"trainer": [1]})


# ------------------------------------------------------------------------------------------- YAML and overrides


@pytest.fixture
def yaml_file(tmp_path):
    def write(text):
        path = tmp_path / "a.yaml"
        path.write_text(text)
        return path

    return write


def test_yaml_is_read_with_attributes_and_numbers_of_yaml_1_2(yaml_file):
    cfg = load_config(yaml_file("optimizer: {type: SGD, lr: 1e-3}\nmodel: {width: 64, rates: [1.5E2, -2e-4]}\n"), [])
    assert cfg.optimizer.lr == 1e-3
    assert cfg.model.rates == [150.0, -2e-4]
    assert cfg["model"]["width"] == 64


def test_dotted_words_override_the_file(yaml_file):
    path = yaml_file("trainer: {max_epoch: 5}\nmodel: {width: 64, deep: {k: 1}}\n")
    words = ["--trainer.max-epoch", "3", "--model.deep.k=1e-2", "--trainer.debug", "--resume"]
    cfg = load_config(path, words)
    assert (cfg.trainer.max_epoch, cfg.model.deep.k, cfg.trainer.debug) == (3, 1e-2, True)


def test_a_setting_that_the_file_lacks_can_be_overridden(yaml_file):
    assert load_config(yaml_file("model: {width: 1}\n"), ["--exp.seed", "9"]).exp.seed == 9


def test_mistakes_in_a_file_come_together_with_their_lines(yaml_file):
    path = yaml_file("trainer:\n  max_epochs: 3\n  grad_acc_steps: two\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path, [])
    text = str(caught.value)
    assert f"cfg.trainer.max_epochs is unknown; did you mean 'max_epoch'? ({path}, line 2)" in text
    assert "cfg.trainer.grad_acc_steps is 'two'" in text
    assert "line 3" in text


def test_an_unknown_override_names_the_nearest_key(yaml_file):
    path = yaml_file("model: {width: 64}\n")
    with pytest.raises(ConfigError, match=r"--model\.witdh is unknown; did you mean 'model\.width'"):
        load_config(path, ["--model.witdh", "3"])
    with pytest.raises(ConfigError, match=r"cfg\.trainer\.max_epochs is unknown; did you mean 'max_epoch'"):
        load_config(path, ["--trainer.max_epochs", "3"])


def test_a_missing_or_broken_file_is_an_error(tmp_path, yaml_file):
    with pytest.raises(ConfigError, match="cannot read the config"):
        load_config(tmp_path / "none.yaml", [])
    with pytest.raises(ConfigError, match="is not valid YAML"):
        load_config(yaml_file("a: [1,"), [])
    with pytest.raises(ConfigError, match="holds a list"):
        load_config(yaml_file("- 1\n"), [])


def test_a_missing_attribute_of_a_config_names_the_nearest(yaml_file):
    cfg = load_config(yaml_file("model: {width: 64}\n"), [])
    with pytest.raises(AttributeError, match="no key 'widht'; did you mean 'width'"):
        _ = cfg.model.widht
