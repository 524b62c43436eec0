"""All parts of an update together, drawn at random, through a stop: against a loop written by hand in float64."""

import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import settings as drawn
from hypothesis import strategies as st

from tests.toys import settings
from tests.turns import ByHand, Turns

LIMITS = {"discriminator": {"clip_grad_norm": 0.05, "clip_grad_value": 0.02}}


class Breaking(Turns):
    """Ends in a step, as a process that is killed, if it is told where."""

    def __init__(self, cfg, stop_at=None, **options):
        super().__init__(cfg, **options)
        self._stop_at = stop_at

    def before_train_step(self, epoch, iteration, data_dict):
        if (epoch, iteration) == self._stop_at:
            raise KeyboardInterrupt


@st.composite
def cases(draw):
    window = draw(st.integers(1, 3))
    styles = ["turns", "by_name", "joint", "single"] + (["critic", "rarely"] if window == 1 else [])
    case = {
        "style": draw(st.sampled_from(styles)),
        "schedule": draw(st.sampled_from([None, "update", "epoch"])),
        "kind": draw(st.sampled_from([torch.optim.Adam, torch.optim.SGD, torch.optim.RAdam])),
    }
    trainer = {
        "grad_acc_steps": window,
        "clip_grad_norm": draw(st.sampled_from([None, 0.02])),
        "ema_decay": draw(st.sampled_from([None, 0.5])),
        "precision": draw(st.sampled_from(["fp32", "bf16", "fp16"])),  # float64 is not cast; its losses are scaled
    }
    limits = LIMITS if case["style"] != "single" and draw(st.booleans()) else None
    stop_at = draw(st.none() | st.tuples(st.integers(1, 2), st.integers(1, 5)))
    return case | {"limits": limits}, trainer, stop_at, draw(st.integers(9, 10))


def train(folder, case, trainer, stop_at, count):
    options = {"max_epoch": 2, "save_every": "1 iteration", **trainer}
    if stop_at is not None:
        with pytest.raises(KeyboardInterrupt):
            Breaking(settings(folder, **options), stop_at, count=count, **case).run()
    one = Turns(settings(folder, **options, resume=stop_at is not None), count=count, **case)
    one.run()
    return one


def assert_near(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name] - value).abs().max() <= 1e-12, name


@drawn(max_examples=25, deadline=None)
@given(cases())
def test_any_combination_of_them_equals_the_loop_by_hand(drawn_case):
    case, trainer, stop_at, count = drawn_case
    with tempfile.TemporaryDirectory() as folder:
        one = train(Path(folder), case, trainer, stop_at, count)
        by_hand = ByHand(clip=trainer["clip_grad_norm"], ema=trainer["ema_decay"], **case)
        # The last batch is smaller with 9 samples; the engine weighs batches alike, as the loop does.
        expected = by_hand.train(count, window=trainer["grad_acc_steps"], epochs=2)
        assert_near(one.model.state_dict(), expected)
        saved = torch.load(Path(folder) / "checkpoints" / "epoch-2.pth", weights_only=True)
        assert_near(saved["model"], by_hand.average or expected)
        if stop_at is not None:
            whole = train(Path(folder) / "whole", case, trainer, None, count)
            assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), whole.model.parameters(), strict=True))
