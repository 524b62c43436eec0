"""Names of parameter groups, their table in the log, and their rates at log lines and in files."""

import json
import re

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from tests.toys import ToyEpochTrainer, ToyIterTrainer, linear_model, rows_loader, settings
from vision3d_engine import CheckpointError, build_optimizer
from vision3d_engine.optim.named_groups import group_names, groups_table, learning_rates


def sgd(*groups, lr=0.1):
    return torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(2, 3))], **group} for group in groups], lr=lr)


def test_groups_are_called_by_their_names_or_numbers_each_once():
    assert group_names(sgd({})) == ["0"]
    names = group_names(sgd({"name": "a"}, {}, {"name": "a"}, {"name": "a#2"}, {"name": "a"}))
    assert names == ["a", "1", "a#2", "a#2#2", "a#3"]


def test_the_rate_of_one_group_is_lr_and_of_several_each_has_its_own():
    assert learning_rates(sgd({})) == {"lr": 0.1}
    assert learning_rates(sgd({"name": "a"}, {"lr": 0.2})) == {"lr": 0.1, "lr/a": 0.1, "lr/1": 0.2}


def test_rates_that_are_tensors_are_those_of_the_moment():
    optimizer = sgd({"lr": torch.tensor(0.5)}, {"lr": torch.tensor(0.25)})
    rates = learning_rates(optimizer)
    optimizer.param_groups[0]["lr"].fill_(0)
    assert {name: float(rate) for name, rate in rates.items()} == {"lr": 0.5, "lr/0": 0.5, "lr/1": 0.25}


def test_a_table_shows_what_is_in_each_group_and_what_in_none():
    model = nn.Sequential(nn.Linear(40, 50), nn.Linear(50, 1), nn.LazyLinear(3))
    rules = [{"match": "^0", "lr_factor": 0.1, "name": "encoder"}, {"match": "^1", "freeze": True}]
    cfg = {"optimizer": {"type": "SGD", "lr": 0.1, "weight_decay": 0.01, "param_rules": rules}}
    table = groups_table(build_optimizer(model, cfg), model)
    assert table is not None
    assert [re.split(r" {2,}", line.strip()) for line in table.splitlines()[1:]] == [
        ["name", "parameters", "numbers", "lr", "weight decay"],
        ["default", "2", "0", "0.1", "0.01"],
        ["encoder", "2", "2,050", "0.01", "0.01"],
        ["(in no group)", "2", "51", "-", "-"],
    ]
    assert len({len(line) for line in table.splitlines()[1:]}) == 1


def test_a_table_shows_the_rates_on_which_a_schedule_is_based():
    optimizer = sgd({"name": "a"}, {"name": "b", "lr": 0.2})
    torch.optim.lr_scheduler.LinearLR(optimizer, 0.5)
    assert re.search(r"a +1 +6 +0\.1 +0\n +b +1 +6 +0\.2", groups_table(optimizer) or "")


def test_one_group_without_a_name_needs_no_table():
    assert groups_table(sgd({})) is None
    assert groups_table(sgd({"name": "all"})) is not None


# ------------------------------------------------------------------------------------------- runs


def grouped(kind):
    """Return a toy with two groups, whose rates fall, and which keeps the rates of its updates."""

    class Grouped(kind):
        def __init__(self, cfg, *loaders, names=("slow", "fast"), lr=(0.1, 0.2)):
            super(kind, self).__init__(cfg)
            self.calls, self.used = [], []
            self.register_loader(*(loaders or (rows_loader(10), rows_loader(4))))
            model = self.register_model(linear_model())
            parts = zip((model.weight, model.bias), names, lr, strict=True)
            groups = [{"params": [part], "name": name, "lr": rate} for part, name, rate in parts]
            plain = [{key: value for key, value in group.items() if value is not None} for group in groups]
            self.register_optimizer(torch.optim.SGD(plain, momentum=0.9))
            self.register_scheduler(torch.optim.lr_scheduler.StepLR(self.optimizer, 1, gamma=0.5))

        def optimizer_step(self):
            self.used.append([float(group["lr"]) for group in self.optimizer.param_groups])
            super().optimizer_step()

    return Grouped


def rows(folder):
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in found if row["phase"] == "train"]


KINDS = [ToyEpochTrainer, ToyIterTrainer]


@pytest.mark.parametrize("as_tensors", [False, True])
@pytest.mark.parametrize("log_steps", [1, 2, 100])
@pytest.mark.parametrize("kind", KINDS)
def test_the_rates_that_steps_used_are_in_all_files(kind, log_steps, as_tensors, tmp_path):
    """Five steps an epoch; the last one is written too, when an epoch's schedule has moved on already."""
    rates = [torch.tensor(0.1), torch.tensor(0.2)] if as_tensors else [0.1, 0.2]
    toy = grouped(kind)(settings(tmp_path, max_epoch=2, log_steps=log_steps), lr=rates)
    toy.run()
    found = rows(tmp_path)
    assert {row["step"] for row in found} >= {5, 10}
    assert [[row["lr/slow"], row["lr/fast"]] for row in found] == [toy.used[row["step"] - 1] for row in found]
    assert [row["lr"] for row in found] == [row["lr/slow"] for row in found]
    events = EventAccumulator(str(tmp_path / "events")).Reload()
    for name in ("lr", "lr/slow", "lr/fast"):
        written = [(event.step, event.value) for event in events.Scalars(f"train/{name}")]
        assert written == [(row["step"], pytest.approx(row[name])) for row in found]


def test_the_rates_are_those_of_the_steps_where_the_length_of_the_data_is_not_known(tmp_path):
    class Unknown:
        def __iter__(self):
            return iter(rows_loader(10))

    toy = grouped(ToyEpochTrainer)(settings(tmp_path, max_epoch=2), Unknown(), rows_loader(4))
    toy.run()
    assert [row["lr/fast"] for row in rows(tmp_path)] == [0.2, 0.1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_ends_before_a_validation_has_the_rates_of_its_last_steps_when_it_is_resumed(kind, tmp_path):
    def broken(*_):
        raise OSError(28, "broken off")

    toy = grouped(kind)(settings(tmp_path / "broken", max_epoch=2))
    toy.after_train_epoch = broken
    with pytest.raises(OSError, match="broken off"):
        toy.run()
    grouped(kind)(settings(tmp_path / "broken", max_epoch=2, resume=True)).run()
    grouped(kind)(settings(tmp_path / "straight", max_epoch=2)).run()
    curves = [[row | {"time_s": 0} for row in rows(tmp_path / name)] for name in ("broken", "straight")]
    assert curves[0] == curves[1]


def test_one_table_of_the_groups_is_in_the_log(tmp_path, capsys):
    grouped(ToyEpochTrainer)(settings(tmp_path))
    said = capsys.readouterr().err
    assert re.findall(r"\n +(\w+) +1 +\d +([\d.]+) +0", said) == [("slow", "0.1"), ("fast", "0.2")]
    ToyEpochTrainer(settings(tmp_path))
    assert "parameter groups" not in capsys.readouterr().err


@pytest.mark.parametrize("before", [(None, None), ("old", "other"), (None, "fast")])
@pytest.mark.parametrize("after", [("slow", "fast"), (None, None)])
def test_a_checkpoint_with_other_names_or_none_goes_on_with_those_of_the_script(before, after, tmp_path):
    kind = grouped(ToyEpochTrainer)
    kind(settings(tmp_path / "named", max_epoch=1), names=before).run()
    kind(settings(tmp_path / "straight", max_epoch=2), names=after).run()
    toy = kind(settings(tmp_path / "named", max_epoch=2, resume=True), names=after)
    toy.run()
    assert [group.get("name") for group in toy.optimizer.param_groups] == list(after)
    assert [group["lr"] for group in toy.optimizer.param_groups] == [0.1 * 0.25, 0.2 * 0.25]
    last = [rows(tmp_path / name)[-1] | {"time_s": 0} for name in ("named", "straight")]
    assert last[0] == last[1]


def test_groups_of_a_checkpoint_in_another_order_are_refused(tmp_path):
    kind = grouped(ToyEpochTrainer)
    kind(settings(tmp_path)).run()
    with pytest.raises(CheckpointError, match=r"groups are in the order slow, fast, those of .* order fast, slow"):
        kind(settings(tmp_path, max_epoch=2, resume=True), names=("fast", "slow")).run()
