"""A script that has changed between two runs: what is in force after a resume, and what is said of it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.toys import ToyEpochTrainer, ToyIterTrainer, linear_model, rows_loader, settings
from vision3d_engine import CheckpointError, build_scheduler


class Toy(ToyIterTrainer):
    """Registers the optimizer and the schedule that it is given."""

    def __init__(self, cfg, make_optimizer, make_scheduler=None):
        super(ToyIterTrainer, self).__init__(cfg)
        self.calls, self.seen, self.said = [], [], []
        self.register_loader(rows_loader(), rows_loader(4))
        model = self.register_model(linear_model())
        self.register_optimizer(make_optimizer(model.parameters()))
        self.register_scheduler(make_scheduler and make_scheduler(self.optimizer))

    def log(self, message, level="INFO"):
        self.said.append(message)
        super().log(message, level)

    def before_train_step(self, epoch, iteration, data_dict):
        group = self.optimizer.param_groups[0]
        self.seen.append((group["lr"], group["weight_decay"]))


def sgd(lr=0.1, **options):
    return lambda parameters: torch.optim.SGD(parameters, lr=lr, **options)


def cosine(total=20, kind="Cosine"):
    return lambda optimizer: build_scheduler(optimizer, {"scheduler": {"type": kind, "total_steps": total}})


def breaking(toy, at):
    """Return a hook that ends the run after a step."""

    def after_train_step(*_):
        if toy.total_steps == at:
            raise OSError(28, "broken off")

    return after_train_step


def resumed(folder, *parts, **trainer):
    """Return a trainer that has gone on for one epoch more, and its warnings about what has changed."""
    toy = Toy(settings(folder, resume=True, **{"max_epoch": 2, **trainer}), *parts)
    toy.run()
    return toy, [line for line in toy.said if "the script differs" in line]


def test_a_script_that_has_not_changed_is_told_nothing(tmp_path):
    for epochs in (1, 2, 3):
        _, said = resumed(tmp_path, sgd(weight_decay=0.01), cosine(), max_epoch=epochs)
        assert said == []


@pytest.mark.parametrize("make_scheduler", [None, cosine()])
def test_changed_rates_are_said_in_one_warning_and_those_of_the_checkpoint_are_in_force(make_scheduler, tmp_path):
    Toy(settings(tmp_path), sgd(), make_scheduler).run()
    for epochs in (2, 3):  # the run is still not what the script says
        toy, said = resumed(tmp_path, sgd(0.05, weight_decay=0.01), make_scheduler, max_epoch=epochs)
        assert len(said) == 1
        assert (
            "in force are the checkpoint's values: lr 0.1 in the checkpoint, 0.05 in the script; weight_decay 0"
            in said[0]
        )
        assert "trainer.on_resume: config takes" in said[0]
        assert toy.optimizer.param_groups[0]["weight_decay"] == 0


@pytest.mark.parametrize("kind", ["Cosine", None])
@pytest.mark.parametrize("save_every", ["1 epoch", "2 iterations"])
def test_the_rates_of_the_script_are_in_force_where_it_asks_for_that(kind, save_every, tmp_path):
    make = kind and cosine()
    straight = Toy(settings(tmp_path / "straight", max_epoch=2), sgd(0.05, weight_decay=0.01), make)
    straight.run()
    run = tmp_path / "run"
    first = Toy(settings(run, max_epoch=2, save_every=save_every), sgd(momentum=0.9), make)
    first.after_train_step = breaking(first, 6)
    with pytest.raises(OSError, match="broken off"):
        first.run()
    toy, said = resumed(run, sgd(0.05, weight_decay=0.01, momentum=0.9), make, on_resume="config")
    assert len(said) == 1
    assert "in force are the script's: lr 0.1 in the checkpoint, 0.05 in the script; weight_decay 0 in" in said[0]
    assert np.allclose(toy.seen, straight.seen[-len(toy.seen) :], rtol=1e-12)
    assert 0 < len(toy.seen) < len(straight.seen)
    assert any(state["momentum_buffer"].abs().sum() > 0 for state in toy.optimizer.state.values())
    assert resumed(run, sgd(0.05, weight_decay=0.01, momentum=0.9), make, max_epoch=3)[1] == []


def test_the_momentum_of_the_checkpoint_is_kept_with_the_rates_of_the_script(tmp_path):
    first = Toy(settings(tmp_path), sgd(momentum=0.9))
    first.run()
    toy = Toy(settings(tmp_path, on_resume="config"), sgd(0.05, momentum=0.9))
    toy.load("checkpoint.pth")
    saved, own = (list(each.optimizer.state.values()) for each in (first, toy))
    assert all(torch.equal(a["momentum_buffer"], b["momentum_buffer"]) for a, b in zip(saved, own, strict=True))
    assert toy.get_lr() == 0.05


def test_each_group_has_the_rate_of_the_script(tmp_path):
    def two(first, second):
        return lambda parameters: torch.optim.SGD(
            [{"params": [each], "lr": lr} for each, lr in zip(parameters, (first, second), strict=True)]
        )

    Toy(settings(tmp_path), two(0.1, 0.2), cosine()).run()
    toy = Toy(settings(tmp_path, on_resume="config"), two(0.1, 0.02), cosine())
    toy.load("checkpoint.pth")
    assert [group["initial_lr"] for group in toy.optimizer.param_groups] == [0.1, 0.02]
    toy.scheduler_step()
    rates = [group["lr"] for group in toy.optimizer.param_groups]
    assert rates[1] == pytest.approx(0.2 * rates[0])


def test_another_schedule_optimizer_and_length_of_an_epoch_are_said_together(tmp_path):
    Toy(settings(tmp_path, num_iters_per_epoch=5), torch.optim.Adam, cosine()).run()
    _, said = resumed(tmp_path, torch.optim.AdamW, cosine(kind="Linear"), num_iters_per_epoch=3)
    assert len(said) == 1
    for what in (
        "optimizer Adam in the checkpoint, AdamW in the script",
        "schedule WarmUpCosineAnnealingFunction in the checkpoint, WarmUpLinearAnnealingFunction in the script",
        "num_iters_per_epoch 5 in the checkpoint, 3 in the script",
    ):
        assert what in said[0]


def test_an_optimizer_that_cannot_go_on_with_the_state_is_refused_by_name(tmp_path):
    Toy(settings(tmp_path), sgd()).run()
    with pytest.raises(
        CheckpointError, match=r"with the optimizer SGD, .*the script's Adam needs \(.*betas.*register SGD"
    ):
        resumed(tmp_path, torch.optim.Adam)


def test_an_open_epoch_that_is_longer_than_those_of_the_script_is_refused(tmp_path):
    toy = Toy(settings(tmp_path, num_iters_per_epoch=9, save_every="2 iterations"), sgd())
    toy.after_train_step = breaking(toy, 7)
    with pytest.raises(OSError, match="broken off"):
        toy.run()
    with pytest.raises(CheckpointError, match=r"at iteration 6 of an epoch, .*per_epoch is 4; expected at least 6"):
        resumed(tmp_path, sgd(), num_iters_per_epoch=4)


@pytest.mark.parametrize("kind", [ToyEpochTrainer, ToyIterTrainer])
def test_a_resume_from_weights_says_what_starts_anew_and_writes_no_row_twice(kind, tmp_path):
    kind(settings(tmp_path, max_epoch=3, log_steps=1)).run()
    toy = kind(settings(tmp_path, max_epoch=3, log_steps=1, resume=True, checkpoint="epoch-1.pth"))
    toy.run()
    said = [line for line in Path(toy.log_file).read_text().splitlines() if "start anew" in line]
    assert len(said) == 1
    assert "'epoch-1.pth' holds no optimizer and no scheduler, which start anew (learning rate 0.1)" in said[0]
    assert "next is epoch 2, total_steps is 3" in said[0]
    assert "means go on over" not in Path(toy.log_file).read_text()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    keys = [
        json.dumps({key: row.get(key) for key in ("phase", "tag", "epoch", "step", "iteration")} | {"k": sorted(row)})
        for row in rows
    ]
    assert len(keys) == len(set(keys))
    assert max(row["step"] for row in rows) == 9
    curves = EventAccumulator(str(tmp_path / "events")).Reload()
    steps = {tag: [event.step for event in curves.Scalars(tag)] for tag in curves.Tags()["scalars"]}
    training = {key: [*range(1, 10)] for key in ("train/loss", "train/mae", "train/lr")}
    assert steps == training | {"val/mae": [1, 2, 3]}
