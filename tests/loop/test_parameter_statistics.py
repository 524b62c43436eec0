"""Norms of gradients and weights, and what updates change, beside a loop that is written by hand."""

import copy
import json
import math

import pytest
import torch
from torch import nn

from tests.toys import settings
from vision3d_engine import EpochBasedTrainer, SkipBatch

KINDS = ("grad_norm", "weight_norm", "update_ratio", "dead_units")


class Net(nn.Module):
    """Two units of the first layer are off for every sample."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.scale = nn.Parameter(torch.ones(1))
        self.table = nn.Embedding(10, 3)
        self.layers = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1))
        with torch.no_grad():
            self.layers[0].bias[:2] = -100

    def forward(self, x):
        return self.layers(x + self.table.weight[0])[:, 0] * self.scale


BATCHES = [{"x": torch.randn(4, 3, generator=torch.Generator().manual_seed(i))} for i in range(8)]


def loss_of(model, batch):
    return (model(batch["x"]) - 1).square().mean()


class Trainer(EpochBasedTrainer):
    def __init__(self, folder, model=None, **trainer):
        asked = {"val_every": "never", "log_steps": 4, "parameter_statistics": True, **trainer}
        super().__init__(settings(folder, **asked))
        self.register_loader(BATCHES)
        model = self.register_model(model or Net())
        self.register_optimizer(torch.optim.Adam(model.parameters(), lr=0.01))

    def train_step(self, epoch, iteration, data_dict):
        return {}, {"loss": loss_of(self.model, data_dict)}


def rows_of(folder, kind):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["values"] for row in rows if row["phase"] == kind}


def by_hand(model, window=1, clip=None, optimizer=None):
    """Return the statistics of each update, by the number of its last batch."""
    optimizer, found = optimizer or torch.optim.Adam(model.parameters(), lr=0.01), {}
    modules = {"model": [model.scale], "table": [model.table.weight]}
    modules |= {f"layers.{i}": [*model.layers[i].parameters()] for i in (0, 2)}
    for end in range(window, len(BATCHES) + 1, window):
        optimizer.zero_grad()
        for batch in BATCHES[end - window : end]:
            (loss_of(model, batch) / window).backward()
        before = copy.deepcopy(modules)
        gradients = {name: torch.cat([each.grad.flatten() for each in own]) for name, own in modules.items()}
        dead = {name: (own[0].grad == 0).all(1) for name, own in modules.items() if name.startswith("layers")}
        dead = {name: each.double().mean().item() for name, each in dead.items()}
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        norms = {name: flat(own).norm().item() for name, own in before.items()}
        changes = {name: (flat(modules[name]) - flat(own)).norm().item() for name, own in before.items()}
        found[end] = {
            "grad_norm": {name: each.norm().item() for name, each in gradients.items()},
            "weight_norm": norms,
            "update_ratio": {name: changes[name] / norms[name] for name in norms},
            "dead_units": dead,
        }
    return found


def flat(tensors):
    return torch.cat([each.detach().double().flatten() for each in tensors])


def assert_written(folder, expected):
    for kind in KINDS:
        found = rows_of(folder, kind)
        assert sorted(found) == sorted(expected)
        for step, values in found.items():
            assert values == pytest.approx(expected[step][kind], rel=1e-5, abs=1e-12), kind


@pytest.mark.parametrize(
    ("trainer", "window"),
    [
        ({}, 1),
        ({"grad_acc_steps": 2}, 2),
        ({"clip_grad_norm": 0.01}, 1),
        ({"ema_decay": 0.5}, 1),
        ({"compile": "default"}, 1),
        ({"nonfinite": "skip"}, 1),
    ],
    ids=str,
)
def test_the_update_before_each_log_line_is_that_of_a_loop_written_by_hand(tmp_path, trainer, window, monkeypatch):
    monkeypatch.setattr(nn.Module, "compile", lambda *_args, **_options: None)
    Trainer(tmp_path, **trainer).run()
    expected = by_hand(Net(), window, trainer.get("clip_grad_norm"))
    assert_written(tmp_path, {step: expected[step] for step in (4, 8)})
    assert expected[4]["dead_units"] == {"layers.0": 0.25, "layers.2": 0.0}


def test_scaled_losses_show_the_gradient_of_the_loss_itself_and_a_skipped_update_changes_nothing(tmp_path):
    Trainer(tmp_path, precision="fp16", log_steps=1).run()
    assert set(rows_of(tmp_path, "update_ratio")[1].values()) == {0.0}, "the first scale is too large for fp16"
    loss_of(model := Net(), BATCHES[1]).backward()
    expected = torch.cat([each.grad.flatten() for each in model.layers[2].parameters()]).norm().item()
    assert rows_of(tmp_path, "grad_norm")[2]["layers.2"] == pytest.approx(expected, rel=0.02)


def test_a_log_line_in_the_midst_of_a_window_tells_of_the_update_before_it(tmp_path):
    Trainer(tmp_path, grad_acc_steps=3, log_steps=4).run()
    assert rows_of(tmp_path, "grad_norm").keys() == {4, 8}
    expected = by_hand(Net(), 3)
    assert rows_of(tmp_path, "grad_norm")[4] == pytest.approx(expected[3]["grad_norm"], rel=1e-5)


def test_between_log_lines_no_weight_is_looked_at_but_in_the_first_update(tmp_path, monkeypatch):
    steps = []

    class Counts(Trainer):
        def optimizer_step(self, name=None):
            steps.append((self.iteration, self.iteration in looked))
            super().optimizer_step()

    from vision3d_engine.loop import parameter_statistics

    looked = set()
    real = parameter_statistics.squares
    monkeypatch.setattr(parameter_statistics, "squares", lambda each: looked.add(trainer.iteration) or real(each))
    trainer = Counts(tmp_path)
    trainer.run()
    assert looked == {1, 4, 8}, "and the first update of the run"
    assert steps == [(i, i in looked) for i in range(1, 9)]


def test_without_the_setting_nothing_is_written_and_the_run_is_the_same_to_the_bit(tmp_path):
    found = []
    for name, is_on in (("on", True), ("off", False)):
        trainer = Trainer(tmp_path / name, parameter_statistics=is_on)
        trainer.run()
        found.append(flat(trainer.model.parameters()))
    assert torch.equal(*found)
    assert not any(rows_of(tmp_path / "off", kind) for kind in KINDS)


class Skips(Trainer):
    """Leaves out the batches of all log lines."""

    skipped = (2, 4, 6, 8)

    def train_step(self, epoch, iteration, data_dict):
        if iteration in self.skipped:
            raise SkipBatch("empty")
        return super().train_step(epoch, iteration, data_dict)


def test_where_the_update_of_a_line_is_put_off_the_next_one_is_told_with_the_line_behind_it(tmp_path):
    Skips(tmp_path, log_steps=2).run()
    assert list(rows_of(tmp_path, "grad_norm")) == [2, 4, 6, 8]


def test_a_line_without_any_update_before_it_tells_nothing_and_the_next_one_of_the_next_update(tmp_path):
    type("SkipsMore", (Skips,), {"skipped": (1, 2, 4)})(tmp_path, log_steps=2).run()
    found = rows_of(tmp_path, "grad_norm")
    assert list(found) == [4, 6, 8]
    first, _, third, *_ = by_hand_of([2, 4, 5])
    assert found[4] == pytest.approx(first, rel=1e-5)
    assert found[6] == pytest.approx(third, rel=1e-5)


def by_hand_of(batches):
    """Return the norms of the gradients of updates with some of the batches."""
    model, found = Net(), []
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for batch in batches:
        optimizer.zero_grad()
        loss_of(model, BATCHES[batch]).backward()
        named = {"model": [model.scale], "table": [model.table.weight]}
        named |= {f"layers.{i}": [*model.layers[i].parameters()] for i in (0, 2)}
        found.append({name: flat([each.grad for each in own]).norm().item() for name, own in named.items()})
        optimizer.step()
    return found


def test_epochs_that_are_shorter_than_the_interval_of_log_lines_have_rows_too(tmp_path):
    Trainer(tmp_path, log_steps=100, max_epoch=2).run()
    assert list(rows_of(tmp_path, "grad_norm")) == [8, 16]


class Turns(Trainer):
    """Two networks, of which one is updated in the midst of the step."""

    def __init__(self, folder, **trainer):
        EpochBasedTrainer.__init__(
            self, settings(folder, val_every="never", log_steps=2, parameter_statistics=True, **trainer)
        )
        self.register_loader(BATCHES)
        torch.manual_seed(0)
        first, second = self.register_model(nn.Linear(3, 1), "a"), self.register_model(nn.Linear(3, 1), "b")
        self.register_optimizer(torch.optim.SGD(first.parameters(), lr=0.1), "a")
        self.register_optimizer(torch.optim.SGD(second.parameters(), lr=0.2), "b")

    def train_step(self, epoch, iteration, data_dict):
        self.update("a", self.model["a"](data_dict["x"]).square().mean())
        return {}, {"loss": self.model["b"](data_dict["x"]).square().mean()}


def test_each_of_several_optimizers_is_told_also_one_that_the_step_updates_itself(tmp_path):
    Turns(tmp_path).run()
    norms, ratios, weights = (rows_of(tmp_path, kind) for kind in ("grad_norm", "update_ratio", "weight_norm"))
    assert list(norms) == [2, 4, 6, 8]
    for step in norms:
        for name, rate in (("a", 0.1), ("b", 0.2)):
            assert ratios[step][name] * weights[step][name] == pytest.approx(rate * norms[step][name], rel=1e-4)


def test_an_optimizer_whose_turn_is_never_at_a_log_line_is_told_too(tmp_path):
    class Rare(Turns):
        def train_step(self, epoch, iteration, data_dict):
            name = "b" if iteration % 4 == 1 else "a"
            self.update(name, self.model[name](data_dict["x"]).square().mean())
            return {}, {"loss": torch.zeros(())}

    Rare(tmp_path).run()
    found = rows_of(tmp_path, "grad_norm")
    assert [step for step, values in found.items() if "b" in values] == [2, 6]
    assert [step for step, values in found.items() if "a" in values] == [2, 4, 6, 8]


def test_what_is_trained_outside_of_the_model_has_the_name_that_the_script_gives_it(tmp_path):
    class Weighs(Trainer):
        def __init__(self, folder):
            super().__init__(folder)
            self.weights = nn.Linear(1, 1)
            self.optimizer.add_param_group({"params": self.weights.parameters()})

        def train_step(self, *args):
            output_dict, result_dict = super().train_step(*args)
            return output_dict, {"loss": result_dict["loss"] + self.weights(torch.ones(1, 1)).square().sum()}

    Weighs(tmp_path).run()
    assert "self.weights" in rows_of(tmp_path, "grad_norm")[4]


def test_sparse_gradients_frozen_weights_and_half_precision_are_taken_as_they_are(tmp_path):
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(5, 3, sparse=True)
            self.frozen, self.small = nn.Linear(3, 3).requires_grad_(False), nn.Linear(3, 1).bfloat16()

        def forward(self, x):
            shifted = self.frozen(x + self.table(torch.tensor([1])))
            return self.small(shifted.bfloat16()).float()[:, 0]

    class Sparse(Trainer):
        def __init__(self, folder):
            super().__init__(folder, Mixed())
            self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01)

    Sparse(tmp_path).run()
    found = {kind: rows_of(tmp_path, kind)[4] for kind in KINDS}
    assert found["grad_norm"].keys() == found["weight_norm"].keys() == {"table", "small"}
    assert found["dead_units"] == {"small": 0.0}
    assert all(math.isfinite(each) and each > 0 for each in found["grad_norm"].values())
