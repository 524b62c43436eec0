"""Several optimizers in one trainer, against a loop written by hand."""

import pytest

from tests.toys import settings
from tests.turns import ByHand, Turns

LIMITS = {"discriminator": {"clip_grad_norm": 0.05}, "generator": {"clip_grad_value": 0.01}}


def assert_equal_to(trainer, expected):
    found = trainer.model.state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name] - value).abs().max() <= 1e-12, name


@pytest.mark.parametrize("style", ["turns", "by_name", "critic", "rarely", "joint"])
def test_networks_that_take_turns_learn_as_in_a_loop_by_hand(style, tmp_path):
    trainer = Turns(settings(tmp_path, max_epoch=2), style=style)
    trainer.run()
    assert_equal_to(trainer, ByHand(style).train(epochs=2))


@pytest.mark.parametrize("style", ["turns", "by_name", "joint"])
@pytest.mark.parametrize("window", [2, 4])
def test_one_window_accumulates_for_all_of_them(style, window, tmp_path):
    trainer = Turns(settings(tmp_path, grad_acc_steps=window), style=style)
    trainer.run()
    assert_equal_to(trainer, ByHand(style).train(window=window))


@pytest.mark.parametrize("style", ["turns", "joint"])
def test_each_may_have_limits_of_its_own(style, tmp_path):
    trainer = Turns(settings(tmp_path, clip_grad_norm=0.02), style=style, limits=LIMITS)
    trainer.run()
    assert_equal_to(trainer, ByHand(style, LIMITS, clip=0.02).train())
