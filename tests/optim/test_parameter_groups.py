"""Parameter groups by rules, against groups and loops that are written by hand."""

import json

import pytest
import torch
from torch import nn

from tests.toys import rows_loader, settings
from vision3d_engine import ConfigError, EpochBasedTrainer, build_optimizer, load_config


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.mlp = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4))
        self.gain = nn.Parameter(torch.ones(4, 1))

    def forward(self, x):
        return x + self.mlp(self.norm(x)) * self.gain[:, 0]


class Net(nn.Module):
    """A stem with a parameter of the net's own, two blocks, a norm, and a head of two linear layers."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.token = nn.Parameter(torch.zeros(1, 4))
        self.embed = nn.Linear(3, 4)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))

    def forward(self, x):
        x = self.embed(x) + self.token
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def build(model, kind="AdamW", **options):
    return build_optimizer(model, {"optimizer": {"type": kind, "lr": 0.01, "weight_decay": 0.1, **options}})


def groups(model, *rules, **options):
    """Return what the groups hold: name, names of parameters, rate and weight decay."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    optimizer = build(model, param_rules=list(rules), **options)
    return [
        (group["name"], [names[each] for each in group["params"]], group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
    ]


def named(model, *parts):
    return [name for name, _ in model.named_parameters() if any(part in name for part in parts)]


def test_without_rules_there_is_one_group_without_a_name():
    model = Net()
    (group,) = build(model).param_groups
    assert "name" not in group
    assert list(map(id, group["params"])) == list(map(id, model.parameters()))


def test_a_rule_is_searched_in_the_names_and_the_rest_comes_first():
    model = Net()
    head, rest = named(model, "head"), [name for name in named(model, "") if "head" not in name]
    found = groups(model, {"match": "ead", "lr_factor": 10, "weight_decay": 0.2, "name": "new"})
    assert found == [("default", rest, 0.01, 0.1), ("new", head, 0.01 * 10, 0.2)]


def test_the_first_rule_about_a_parameter_counts():
    model = Net()
    found = groups(model, {"match": r"^blocks\.1", "lr": 0.5}, {"match": "blocks", "lr_factor": 0}, {"match": ""})
    assert [(name, rate) for name, _, rate, _ in found] == [(r"^blocks\.1", 0.5), ("blocks", 0.0), ("", 0.01)]
    assert found[1][1] == named(model, "blocks.0")


def test_a_rule_about_a_module_is_about_all_that_is_in_modules_of_its_class_and_of_derived_ones():
    class Wide(Block):
        pass

    model = Net()
    model.blocks[1] = Wide()
    ((_, names, *_),) = [each for each in groups(model, {"module": "Block", "lr": 1}) if each[0] == "Block"]
    assert names == named(model, "blocks")
    ((_, names, *_),) = [each for each in groups(model, {"module": "Wide", "lr": 1}) if each[0] == "Wide"]
    assert names == named(model, "blocks.1")
    both = {"module": "Wide", "match": "norm", "lr": 1}
    assert [names for _, names, rate, _ in groups(model, both) if rate == 1] == [named(model, "blocks.1.norm")]


def test_a_frozen_parameter_does_not_require_grad_and_is_in_no_group():
    model = Net()
    found = groups(model, {"match": "embed|token", "freeze": True}, {"match": "head", "lr": 1})
    frozen = named(model, "embed", "token")
    assert {name for name, each in model.named_parameters() if not each.requires_grad} == set(frozen)
    assert not set(frozen) & {name for _, names, *_ in found for name in names}


def test_nothing_is_frozen_when_another_rule_or_the_optimizer_is_refused():
    model = Net()
    with pytest.raises(ConfigError, match="is about no parameter"):
        build(model, param_rules=[{"match": "embed", "freeze": True}, {"match": "zebra"}])
    with pytest.raises(ConfigError, match="Invalid beta parameter"):
        build(model, param_rules=[{"match": "embed", "freeze": True}], betas=(2.0, 2.0))
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_norms_biases_and_what_has_one_dimension_may_have_no_weight_decay():
    class ScaledNorm(nn.Module):
        def __init__(self):
            super().__init__()
            self.grid = nn.Parameter(torch.ones(2, 2))

    parts = [nn.Linear(2, 2), nn.BatchNorm3d(2), nn.GroupNorm(1, 2), nn.InstanceNorm1d(2, affine=True)]
    model = nn.Sequential(
        *parts, nn.LayerNorm((2, 2)), nn.RMSNorm((2, 2)), ScaledNorm(), nn.PReLU(), nn.Embedding(2, 2)
    )
    found = groups(model, no_decay_on_norm_and_bias=True)
    assert [(name, decay) for name, _, _, decay in found] == [("default", 0.1), ("default/no_decay", 0.0)]
    assert found[0][1] == ["0.weight", "8.weight"]


def test_a_rule_that_sets_weight_decay_sets_it_for_norms_and_biases_too():
    found = groups(Net(), {"match": "head", "weight_decay": 0.3}, {"match": "norm"}, no_decay_on_norm_and_bias=True)
    decays = {name: decay for name, _, _, decay in found}
    assert decays == {"default": 0.1, "default/no_decay": 0.0, "head": 0.3, "norm/no_decay": 0.0}


def test_rates_fall_with_depth_from_the_head_down_to_the_stem():
    """As in BEiT: decay ** (layers + 1 - layer); stem is layer 0, and what comes after the last block has it whole."""
    model = Net()
    assert groups(model, layer_decay=0.5) == [
        ("default", [name for name in named(model, "norm.", "head") if "blocks" not in name], 0.01, 0.1),
        ("default/layer_2", named(model, "blocks.1"), 0.01 * 0.5, 0.1),
        ("default/layer_1", named(model, "blocks.0"), 0.01 * 0.5**2, 0.1),
        ("default/layer_0", named(model, "token", "embed"), 0.01 * 0.5**3, 0.1),
    ]


def test_factors_multiply_and_an_absolute_rate_is_what_it_says():
    rules = {"match": "mlp", "lr_factor": 3.0}, {"match": "gain", "lr": 0.5}
    rates = {name: rate for name, _, rate, _ in groups(Net(), *rules, layer_decay=0.5)}
    assert rates["mlp/layer_2"] == pytest.approx(0.01 * 3 * 0.5)
    assert rates["mlp/layer_1"] == pytest.approx(0.01 * 3 * 0.25)
    assert rates["gain"] == 0.5


def test_of_nested_containers_the_outermost_is_of_layers_unless_a_pattern_says_otherwise():
    stages = nn.ModuleList([nn.ModuleList([Block(), Block()]), nn.ModuleList([Block(), Block()])])
    model = nn.ModuleDict({"stages": stages, "head": nn.Linear(4, 1)})
    names = [name for name, *_ in groups(model, layer_decay=0.5)]
    assert names == ["default", "default/layer_2", "default/layer_1"]
    found = groups(model, layer_decay=0.5, layer_match=r"stages\.\d+\.\d+\.")
    assert [name for name, *_ in found] == ["default", *(f"default/layer_{number}" for number in (4, 3, 2, 1))]
    assert found[1][1] == named(model, "stages.1.1")


def test_what_lies_between_two_layers_belongs_to_the_one_before_it():
    model = nn.ModuleDict({"enc0": nn.Linear(2, 2), "down": nn.Linear(2, 2), "enc1": nn.Linear(2, 2)})
    found = groups(model, layer_decay=0.5, layer_match=r"enc\d")
    assert [names for _, names, *_ in found] == [named(model, "enc1"), named(model, "enc0", "down")]


def test_a_tied_parameter_is_in_one_group_and_known_by_all_its_names():
    model = nn.ModuleDict({"embed": nn.Embedding(4, 2), "head": nn.Linear(2, 4, bias=False)})
    model["head"].weight = model["embed"].weight
    assert groups(model, {"match": "head", "lr": 1}) == [("head", ["embed.weight"], 1, 0.1)]
    assert groups(model, {"module": "Embedding", "lr": 1}) == [("Embedding", ["embed.weight"], 1, 0.1)]


def test_parameters_of_lazy_modules_are_sorted_by_their_names():
    model = nn.Sequential(nn.LazyLinear(3), nn.LazyBatchNorm1d())
    found = groups(model, no_decay_on_norm_and_bias=True)
    assert [names for _, names, *_ in found] == [["0.weight"], ["0.bias", "1.weight", "1.bias"]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"match": "^heat"}, r"param_rules\[0\] \(match '\^heat'\) is about no parameter; did you mean 'head'\?"),
        ({"match": r"blocsk\.1"}, r"did you mean 'blocks\.1'\? \(names begin with: token, embed, blocks, norm, head"),
        ({"module": "LayerNrom"}, r"did you mean 'LayerNorm'\? \(classes of modules: Net, Linear"),
        ({"match": "head", "lr_facto": 1}, r"param_rules\[0\]\.lr_facto is unknown; did you mean 'lr_factor'"),
        ({"match": "head", "x": 1}, r"param_rules\[0\]\.x is unknown \(cfg\.optimizer\.param_rules\[0\] has: match, "),
        ({"match": "head", "lr": -1}, r"param_rules\[0\]\.lr is -1; it must be greater than or equal to 0\. Learning"),
        ({"match": "he(ad"}, r"match is 'he\(ad'; it must be a regular expression, but missing \)"),
        ({"lr": 1}, r"param_rules\[0\] is \{'lr': 1\}; it must have match or module"),
        ({"match": "head", "lr": 1, "lr_factor": 2}, "it must have lr or lr_factor, not both"),
        ({"match": "head", "lr": 1, "freeze": True}, "it must have no rate and no weight decay beside freeze"),
    ],
)
def test_a_wrong_rule_is_an_error_that_says_what_there_is(options, message):
    with pytest.raises(ConfigError, match=message):
        build(Net(), param_rules=[options])


def test_a_rule_whose_parameters_are_all_taken_by_rules_before_it_is_an_error():
    with pytest.raises(
        ConfigError, match=r"param_rules\[1\] .*match 'head\.0'\) acts on no parameter.* param_rules\[0\]"
    ):
        build(Net(), param_rules=[{"match": "head"}, {"match": "head.0", "lr": 1}])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"param_rule": []}, r"cfg\.optimizer\.param_rule is not an argument of AdamW; did you mean 'param_rules'"),
        ({"param_rules": {"match": "head"}}, r"cfg\.optimizer\.param_rules is \{'match': 'head'\}; it must be a valid"),
        ({"layer_decay": 1.5}, r"cfg\.optimizer\.layer_decay is 1\.5; it must be less than or equal to 1"),
        ({"layer_match": "blocks"}, r"it must have layer_decay beside layer_match"),
        ({"layer_decay": 0.5, "layer_match": "zebra"}, r"finds no layers: layer_match 'zebra' is in no name"),
        ({"kind": "Rprop", "param_rules": [{"match": "head", "weight_decay": 0}]}, "Rprop has no weight decay"),
        ({"param_rules": [{"match": "", "freeze": True}]}, "empty parameter list"),
    ],
)
def test_a_wrong_setting_of_groups_is_an_error(options, message):
    kind = options.pop("kind", "AdamW")
    decay = {"weight_decay": 0.1} if kind == "AdamW" else {}
    with pytest.raises(ConfigError, match=message):
        build_optimizer(Net(), {"optimizer": {"type": kind, "lr": 0.01, **decay, **options}})


def test_layer_decay_in_a_model_without_blocks_is_an_error_with_the_way_out():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    with pytest.raises(ConfigError, match=r"no entry of a Sequential .* Say by cfg\.optimizer\.layer_match"):
        build(model, layer_decay=0.5)


def test_rules_may_come_from_a_file_and_its_mistakes_have_their_line(tmp_path):
    file = tmp_path / "a.yaml"
    text = "optimizer:\n  type: SGD\n  lr: 0.1\n  param_rules:\n  - match: ^head\n    lr_factor: 10\n"
    file.write_text(text)
    optimizer = build_optimizer(Net(), load_config(file, ["--optimizer.layer_decay", "0.5"]))
    assert optimizer.param_groups[-1]["name"] == "^head"
    file.write_text(text.replace("lr_factor", "lr_fator"))
    with pytest.raises(ConfigError, match=r"lr_fator is unknown; did you mean 'lr_factor'\? \(.*a\.yaml, line 4\)"):
        load_config(file, [])


# ------------------------------------------------------------------------------------------- training

RULES = {
    "param_rules": [{"match": "token", "freeze": True}, {"match": "^head", "lr_factor": 5.0}],
    "no_decay_on_norm_and_bias": True,
    "layer_decay": 0.5,
}
KINDS = {"SGD": {"momentum": 0.9}, "AdamW": {}, "RMSprop": {}, "Adagrad": {}}


class Trainer(EpochBasedTrainer):
    broken_at = None

    def __init__(self, folder, kind, **trainer):
        super().__init__(settings(folder, max_epoch=2, log_steps=2, save_every="1 iteration", **trainer))
        self.register_loader(rows_loader(12, batch_size=4), rows_loader(4))
        self.model_of_run = self.register_model(Net().double())
        self.register_optimizer(build(self.model, kind, **KINDS[kind], **RULES))
        self.register_scheduler(torch.optim.lr_scheduler.StepLR(self.optimizer, 1, 0.5))

    def train_step(self, epoch, iteration, data_dict):
        if (epoch, iteration) == self.broken_at:
            raise OSError(28, "broken off")
        return {}, {"loss": (self.model(data_dict["x"])[:, 0] - data_dict["y"]).square().mean()}

    def val_step(self, epoch, iteration, data_dict):
        return {}, {"mae": (self.model(data_dict["x"])[:, 0] - data_dict["y"]).abs().mean()}


def by_hand(kind, fused):
    """Train with groups that are written by hand, in a plain loop."""
    model, rates = Net().double(), {"embed": 0.5**3, "blocks.0": 0.5**2, "blocks.1": 0.5, "norm": 1.0, "head": 5.0}
    by_key = {}
    for name, parameter in model.named_parameters():
        if name != "token":
            part = next(part for part in rates if name.startswith(part))
            decay = 0.0 if "norm" in name or "bias" in name else 0.1
            by_key.setdefault((part, decay), []).append(parameter)
    groups = [{"params": each, "lr": 0.01 * rates[part], "weight_decay": d} for (part, d), each in by_key.items()]
    optimizer = getattr(torch.optim, kind)(groups, **KINDS[kind], **({"fused": True} if fused else {}))
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    model.token.requires_grad_(False)
    for _ in range(2):
        for batch in rows_loader(12, batch_size=4):
            optimizer.zero_grad()
            (model(batch["x"])[:, 0] - batch["y"]).square().mean().backward()
            optimizer.step()
        schedule.step()
    return model.state_dict()


def assert_same(state, expected):
    assert all(torch.equal(state[name], value) for name, value in expected.items())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fused", [True, False])
def test_a_run_with_rules_has_the_bits_of_a_loop_with_groups_by_hand(kind, fused, tmp_path):
    trainer = Trainer(tmp_path, kind, fused_optimizer=fused)
    trainer.run()
    assert_same(trainer.model.state_dict(), by_hand(kind, fused and kind in ("AdamW", "Adagrad")))


@pytest.mark.parametrize("at", [(1, 2), (2, 1), (2, 3)])
def test_a_resumed_run_with_rules_has_the_same_bits_and_rates(at, tmp_path):
    straight, broken = Trainer(tmp_path / "straight", "AdamW"), Trainer(tmp_path / "broken", "AdamW")
    straight.run()
    broken.broken_at = at
    with pytest.raises(OSError, match="broken off"):
        broken.run()
    resumed = Trainer(tmp_path / "broken", "AdamW", resume=True)
    resumed.run()
    assert_same(resumed.model.state_dict(), straight.model.state_dict())
    curves = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("straight", "broken")]
    plain = [[{**json.loads(line), "time_s": 0} for line in lines] for lines in curves]
    assert plain[0] == plain[1]
