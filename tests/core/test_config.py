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
    (tmp_path / "binary.yaml").write_bytes(b"\xff\x00")
    with pytest.raises(ConfigError, match="is not valid YAML"):
        load_config(tmp_path / "binary.yaml", [])
    with pytest.raises(ConfigError, match="holds a list"):
        load_config(yaml_file("- 1\n"), [])


def test_a_missing_attribute_of_a_config_names_the_nearest(yaml_file):
    cfg = load_config(yaml_file("model: {width: 64}\n"), [])
    with pytest.raises(AttributeError, match="no key 'widht'; did you mean 'width'"):
        _ = cfg.model.widht


# ------------------------------------------------------------------------------------------- what would go unsaid


@pytest.mark.parametrize("words", [["--trainer.log_steps"], ["--trainer.log_steps", "--resume"]])
def test_an_override_without_a_value_is_an_error_where_it_is_no_switch(words, yaml_file):
    with pytest.raises(ConfigError, match=r"--trainer\.log_steps has no value; expected one, such as .*log_steps 10"):
        load_config(yaml_file("model: {width: 64, deep: false}\n"), words)
    with pytest.raises(ConfigError, match=r"--model\.width has no value; expected one, such as --model\.width 64"):
        load_config(yaml_file("model: {width: 64}\n"), ["--model.width"])
    assert load_config(yaml_file("model: {deep: false}\n"), ["--model.deep"]).model.deep is True


@pytest.mark.parametrize("word", ["trainer.log_steps=2", "-trainer.log_steps=2", "trainer.log_steps", "model.width=2"])
def test_an_override_that_lacks_its_dashes_is_an_error(word, yaml_file):
    with pytest.raises(ConfigError, match=rf"'{word}' on the command line sets nothing; expected --\w+\.\w+="):
        load_config(
            yaml_file("model: {width: 64}\n"), ["data", "--trainer.max_epoch=1", "--resume", "--log_steps=3", word]
        )


def test_dotted_words_that_a_script_reads_itself_stay_its_own(yaml_file):
    words = ["exp.yaml", "data.root=x", "--note", "trainer.log_steps=2", "--trainer.max_epoch", "2"]
    cfg = load_config(yaml_file("model: {width: 64}\n"), words)
    assert (cfg.trainer, cfg.model) == ({"max_epoch": 2}, {"width": 64})


@pytest.mark.parametrize("words", [["--model.width", "1", "2"], ["--model.width=1", "2"], ["--model.width", "1", "-2"]])
def test_an_override_with_several_values_is_an_error_that_shows_a_list(words, yaml_file):
    with pytest.raises(ConfigError, match=r"--model\.width has 2 values \(1 -?2\); expected one: .*'\[1, -?2\]'"):
        load_config(yaml_file("model: {width: 64}\n"), words)
    assert load_config(yaml_file("model: {width: 64}\n"), ["--model.width", "[1, 2]"]).model.width == [1, 2]


def test_negative_numbers_are_values_of_overrides(yaml_file):
    words = ["--model.rate", "-1", "--model.size", "-0.5", "--model.deep"]
    cfg = load_config(yaml_file("model: {rate: 1, size: 1, deep: false}\n"), words)
    assert cfg.model == {"rate": -1, "size": -0.5, "deep": True}


@pytest.mark.parametrize(("key", "section"), [("trianer", "trainer"), ("Exp", "exp")])
def test_a_misspelt_section_is_an_error_with_its_line(key, section, yaml_file):
    path = yaml_file(f"model: {{width: 1}}\n{key}: {{seed: 3}}\n")
    with pytest.raises(ConfigError, match=rf"cfg\.{key} is unknown; did you mean '{section}'\? \(.*, line 2\)"):
        load_config(path, [])
    with pytest.raises(ConfigError, match=rf"cfg\.{key} is unknown; did you mean '{section}'"):
        read_settings({key: {}})
    assert read_settings(EasyDict({key: {}}))[1] == [f"cfg.{key} is unknown; did you mean '{section}'?"]


def test_groups_of_a_script_beside_the_sections_are_its_own(yaml_file):
    text = (
        "train: {size: 1}\nexperiment: {a: 1}\ntrainer: {max_epoch: 1}\ntrainers: [1]\noptimizers: {a: {type: SGD}}\n"
    )
    assert load_config(yaml_file(text), []).train.size == 1


def test_a_misspelt_section_of_the_command_line_names_the_nearest_setting(yaml_file):
    with pytest.raises(ConfigError, match=r"--trianer\.log_steps is unknown; did you mean 'trainer\.log_steps'"):
        load_config(yaml_file("model: {width: 64}\n"), ["--trianer.log_steps", "2"])


def test_a_key_that_is_given_twice_is_an_error_with_both_lines(yaml_file):
    path = yaml_file("trainer:\n  max_epoch: 3\nmodel:\n  blocks:\n  - {k: 1, k: 2}\ntrainer:\n  log_steps: 2\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path, [])
    assert f"cfg.trainer is given 2 times, in lines 1, 6; expected once: merge them into one ({path}" in str(
        caught.value
    )
    assert "cfg.model.blocks.0.k is given 2 times, in lines 5, 5" in str(caught.value)


def test_keys_that_anchors_bring_in_may_be_given_again(yaml_file):
    text = "base: &base {a: 1, b: 2}\nother: &other {c: 3}\nmodel:\n  <<: *base\n  <<: *other\n  a: 5\nagain: *base\n"
    cfg = load_config(yaml_file(text), [])
    assert (cfg.model.a, cfg.again.a) == (5, 1)


def test_an_unknown_key_that_is_near_nothing_is_told_what_there_is(yaml_file):
    with pytest.raises(ConfigError, match=r"cfg\.exp\.zebra is unknown \(cfg\.exp has: name, output_dir, "):
        read_settings({"exp": {"zebra": 1}})
