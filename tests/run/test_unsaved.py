import random
from collections import deque
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from tests.toys import ToyEpochTrainer, ToyIterTrainer, linear_model, rows_loader, settings

KEPT = {
    "a number": (lambda: 0, lambda value: value + 1),
    "a text": (lambda: "", lambda value: value + "x"),
    "a list": (list, lambda value: value.append(0.5)),
    "a list in a dict": (lambda: {"losses": []}, lambda value: value["losses"].append(1)),
    "a set": (set, lambda value: value.add(len(value))),
    "a deque": (lambda: deque(maxlen=3), lambda value: value.append(len(value))),
    "a namespace": (lambda: SimpleNamespace(seen=0), lambda value: setattr(value, "seen", value.seen + 1)),
    "an array": (lambda: np.zeros(3), lambda value: value.__iadd__(1)),
    "a tensor": (lambda: torch.zeros(3), lambda value: value.add_(1)),
    "a generator of torch": (torch.Generator, lambda value: torch.rand(1, generator=value)),
    "a generator of numpy": (np.random.default_rng, lambda value: value.random()),
    "an old generator of numpy": (lambda: np.random.RandomState(0), lambda value: value.rand()),
    "a generator of python": (lambda: random.Random(0), lambda value: value.random()),
}


class Keeping(ToyEpochTrainer):
    """Has an attribute that changes at every step."""

    def __init__(self, cfg, make, change):
        super().__init__(cfg)
        self.kept, self._change = make(), change
        self.steady, self.counted = {"width": [1, 2]}, self.register_state("counted", torch.Generator())

    def after_train_step(self, *_):
        changed = self._change(self.kept)
        if isinstance(changed, int | str):
            self.kept = changed
        torch.rand(1, generator=self.counted)


def lines_of(log_file, part):
    return [line for line in Path(log_file).read_text().splitlines() if part in line]


@pytest.mark.parametrize("kind", KEPT)
def test_an_attribute_that_a_resume_would_lose_is_named_once(kind, tmp_path):
    trainer = Keeping(settings(tmp_path, max_epoch=3), *KEPT[kind])
    log_file = trainer.log_file
    trainer.run()
    (line,) = lines_of(log_file, "will be lost by a resume")
    assert "self.kept" in line
    assert "self.steady" not in line
    assert "self.counted" not in line


def test_what_changes_only_after_the_validation_is_named_too(tmp_path):
    class Late(ToyEpochTrainer):
        def after_val_epoch(self, epoch, summary_dict):
            self.best = min(getattr(self, "best", 1e9), summary_dict["mae"])
            self.history.append(self.best)

    trainer = Late(settings(tmp_path, max_epoch=2))
    trainer.history = []
    log_file = trainer.log_file
    trainer.run()
    assert len(lines_of(log_file, "self.history")) == 1


def test_a_hook_without_state_is_looked_at_and_one_with_state_is_not(tmp_path):
    class Counting:
        def __init__(self):
            self.steps = 0

        def after_train_step(self, *_):
            self.steps += 1

    class Saved(Counting):
        def state_dict(self):
            return {"steps": self.steps}

        def load_state_dict(self, state):
            self.steps = state["steps"]

    trainer = ToyEpochTrainer(settings(tmp_path))
    trainer.add_hook(Counting())
    trainer.add_hook(Saved())
    log_file = trainer.log_file
    trainer.run()
    (line,) = lines_of(log_file, "will be lost by a resume")
    assert "Counting.steps" in line
    assert "Saved.steps" not in line


class Centred(nn.Module):
    """Keeps running means in buffers, one of which is in no state."""

    def __init__(self):
        super().__init__()
        self.linear = linear_model()
        self.register_buffer("lost", torch.zeros(3), persistent=False)
        self.register_buffer("table", torch.ones(3), persistent=False)
        self.register_buffer("saved", torch.zeros(3))

    def forward(self, x):
        for buffer in (self.lost, self.saved):
            buffer.lerp_(x.detach().float().mean(0), 0.1)
        return self.linear(x)


def test_a_buffer_that_is_in_no_checkpoint_and_changes_is_named_once(tmp_path):
    class Trainer(ToyEpochTrainer):
        def __init__(self, cfg):
            super().__init__(cfg)
            self.model = self.optimizer = self.scheduler = None
            model = self.register_model(Centred())
            self.register_optimizer(torch.optim.SGD(model.parameters(), lr=0.1))

    trainer = Trainer(settings(tmp_path, max_epoch=2))
    log_file = trainer.log_file
    trainer.run()
    (line,) = lines_of(log_file, "no checkpoint holds")
    assert "lost" in line
    assert "table" not in line
    assert "saved" not in line


def test_nothing_is_said_of_a_script_that_keeps_nothing_and_of_what_the_engine_keeps(tmp_path):
    class Plain(ToyIterTrainer):
        def _note(self, *_):
            pass

    trainer = Plain(settings(tmp_path, max_epoch=3))
    log_file = trainer.log_file
    trainer.run()
    assert lines_of(log_file, "will be lost by a resume") == []


class Odd:
    """Raises whenever it is looked at."""

    def __getattr__(self, name):
        raise RuntimeError(name)

    def __repr__(self):
        raise RuntimeError


def test_odd_and_large_attributes_neither_stop_a_run_nor_hold_it_up(tmp_path):
    itself = [1]
    itself.append(itself)
    trainer = ToyEpochTrainer(settings(tmp_path, max_epoch=2))
    trainer.kind, trainer.conj, trainer.odd, trainer.itself = nn.Linear, torch.ones(2).cfloat().conj(), Odd(), itself
    trainer.keyed, trainer.twelve = {Odd(): 1}, []
    trainer.twelve += [trainer.twelve] * 12
    trainer.large = {key: list(range(20)) for key in range(30_000)}
    trainer.nested, trainer.sparse = (
        torch.nested.nested_tensor([torch.ones(2)], layout=torch.jagged),
        torch.eye(2).to_sparse(),
    )
    trainer.run()


def test_what_a_second_optimizer_trains_and_what_a_step_first_makes_is_named(tmp_path):
    class Second(ToyEpochTrainer):
        def __init__(self, cfg):
            super().__init__(cfg)
            self.temperature = nn.Parameter(torch.ones(1))
            self._average = torch.optim.swa_utils.AveragedModel(self.model)
            self.second = self.register_state("second", torch.optim.SGD([self.temperature], lr=0.1))

        def after_train_step(self, *_):
            self.temperature.grad = torch.ones(1)
            self.second.step()
            self.made = getattr(self, "made", 0) + 1

    trainer = Second(settings(tmp_path))
    log_file = trainer.log_file
    trainer.run()
    (line,) = lines_of(log_file, "will be lost by a resume")
    assert "self.temperature" in line
    assert "self.made" in line
    assert len(lines_of(log_file, "self._average has a state that is not saved")) == 1


def test_a_validation_loader_with_a_state_of_its_own_is_no_state_that_is_lost(tmp_path):
    class Stateful(list):
        def state_dict(self):
            return {"at": 3}

        def load_state_dict(self, state):
            pass

    trainer = ToyEpochTrainer(settings(tmp_path))
    trainer.hard = Stateful(rows_loader())
    trainer.register_loader(rows_loader(), {"easy": rows_loader(), "hard": trainer.hard})
    log_file = trainer.log_file
    trainer.run()
    assert lines_of(log_file, "has a state that is not saved") == []
