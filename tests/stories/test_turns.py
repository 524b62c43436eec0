"""Networks that take turns on two and three processes, through a kill: as one process with the big batch, by hand."""

from pathlib import Path

import pytest
import torch

from tests.stories.test_worlds import World
from tests.turns import ByHand

SERVER = Path(__file__).parent / "turns_server.py"
LIMITS = {"discriminator": {"clip_grad_norm": 0.05}}


@pytest.fixture(scope="module", params=[2, pytest.param(3, marks=pytest.mark.slow)])
def world(request):
    world = World(request.param, SERVER)
    yield world
    world.close()


def weights(world, folder, **case):
    results = world.run(folder=str(folder), **case)
    assert [result["error"] for result in results if "error" in result] == []
    return [result["weights"] for result in results]


def assert_as_by_hand(world, folder, expected, **case):
    """To 1e-12 in float64, since gradients are added up in another order."""
    for found in weights(world, folder, **case):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert (torch.tensor(found[name], dtype=torch.float64) - value).abs().max() <= 1e-12, name


@pytest.mark.parametrize("style", ["turns", "by_name", "critic", "rarely", "joint"])
@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_turns_are_as_on_one_process(world, tmp_path, style, parallel):
    expected = ByHand(style, LIMITS).train(12 * world.size, processes=world.size)
    options = {"count": 12 * world.size, "style": style, "limits": LIMITS}
    assert_as_by_hand(world, tmp_path, expected, options=options, trainer={"max_epoch": 1, "parallel": parallel})


@pytest.mark.parametrize("style", ["turns", "joint"])
@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_windows_of_several_batches_too_the_last_one_incomplete(world, tmp_path, style, parallel):
    expected = ByHand(style, LIMITS).train(10 * world.size, processes=world.size, window=2)
    options = {"count": 10 * world.size, "style": style, "limits": LIMITS}
    trainer = {"max_epoch": 1, "parallel": parallel, "grad_acc_steps": 2}
    assert_as_by_hand(world, tmp_path, expected, options=options, trainer=trainer)


@pytest.mark.parametrize("style", ["turns", "critic", "joint"])
@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_losses_that_are_scaled_by_powers_of_two_change_nothing(world, tmp_path, style, parallel):
    expected = ByHand(style, LIMITS).train(10 * world.size, processes=world.size, window=1)
    options = {"count": 10 * world.size, "style": style, "limits": LIMITS}
    trainer = {"max_epoch": 1, "parallel": parallel, "precision": "fp16"}  # float64 is not cast
    assert_as_by_hand(world, tmp_path, expected, options=options, trainer=trainer)


@pytest.mark.parametrize("style", ["turns", "joint"])
def test_a_process_without_a_batch_joins_every_turn(world, tmp_path, style):
    count = 12 * world.size + 2  # one batch more than the processes share
    expected = ByHand(style).train(count, processes=world.size)
    options = {"count": count, "style": style}
    assert_as_by_hand(world, tmp_path, expected, options=options, trainer={"max_epoch": 1})


@pytest.mark.parametrize("stop_at", [(1, 4), (2, 1), (2, 6)])
@pytest.mark.parametrize("window", [1, 2])
def test_a_kill_at_any_step_changes_no_bit(world, tmp_path, stop_at, window):
    options = {"count": 12 * world.size, "limits": LIMITS}
    trainer = {"max_epoch": 2, "grad_acc_steps": window, "save_every": "1 iteration"}
    whole = weights(world, tmp_path / "whole", options=options, trainer=trainer)
    resumed = weights(world, tmp_path / "resumed", options=options, trainer=trainer, stop_at=stop_at)
    assert resumed == whole


COMBINATIONS = [
    ("turns", "update", 1, (2, 2), {"clip_grad_norm": 0.02, "ema_decay": 0.5}),
    ("joint", "epoch", 2, (1, 4), {"precision": "fp16", "ema_decay": 0.9}),
    ("by_name", "update", 2, None, {"precision": "fp16", "clip_grad_norm": 0.02}),
    ("single", "update", 2, (2, 3), {"clip_grad_norm": 0.02, "ema_decay": 0.5}),
]


@pytest.mark.parametrize(("style", "schedule", "window", "stop_at", "trainer"), COMBINATIONS)
@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_all_parts_of_an_update_together_are_as_by_hand(
    world, tmp_path, style, schedule, window, stop_at, trainer, parallel
):
    by_hand = ByHand(style, clip=trainer.get("clip_grad_norm"), schedule=schedule, ema=trainer.get("ema_decay"))
    expected = by_hand.train(10 * world.size, processes=world.size, window=window, epochs=2)
    options = {"count": 10 * world.size, "style": style, "schedule": schedule}
    settings = {"max_epoch": 2, "parallel": parallel, "grad_acc_steps": window, "save_every": "1 iteration"} | trainer
    assert_as_by_hand(world, tmp_path, expected, options=options, trainer=settings, stop_at=stop_at)
    if parallel == "ddp" and by_hand.average:
        saved = torch.load(tmp_path / "checkpoints" / "epoch-2.pth", weights_only=True)["model"]
        assert all((saved[name] - value).abs().max() <= 1e-12 for name, value in by_hand.average.items())


@pytest.mark.parametrize("style", ["turns", "joint"])
def test_a_batch_without_weight_on_one_process_is_left_out(world, tmp_path, style):
    options = {"count": 2 * world.size + 2, "style": style, "void_rank": 1}
    found = weights(world, tmp_path, options=options, trainer={"max_epoch": 1})
    assert all(torch.tensor(value).isfinite().all() for value in found[0].values())
    assert all(each == found[0] for each in found)
