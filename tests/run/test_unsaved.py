import random
from collections import deque
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from tests.toys import ToyEpochTrainer, linear_model, settings

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
