"""Batches that some of two or three processes leave out: the others train as if there were none, and nobody waits."""

from pathlib import Path

import pytest
import torch

from tests.stories import skip_server
from tests.stories.test_worlds import World

SERVER = Path(__file__).parent / "skip_server.py"


@pytest.fixture(scope="module", params=[2, pytest.param(3, marks=pytest.mark.slow)])
def world(request):
    world = World(request.param, SERVER)
    yield world
    world.close()


def run(world, tmp_path, **case):
    results = world.run(folder=str(tmp_path), **case)
    assert [result["error"] for result in results if "error" in result] == []
    return results


def assert_learns_as_by_hand(world, tmp_path, **case):
    """To 1e-12 in float64, since gradients are added up in another order."""
    case = {"trainer": {}, "way": "raise", "count": 8 * world.size, **case}
    expected, losses = skip_server.by_hand(case, world.size)
    results = run(world, tmp_path, **case)
    for result in results:
        assert (torch.tensor(result["weights"], dtype=torch.float64) - expected).abs().max() <= 1e-12
    return results, losses


def bad_batches(world):
    """Of the first step one process's, of the second all, of the third all but one, of the fourth none."""
    size = world.size
    return [0, *range(size, 2 * size), *range(2 * size + 1, 3 * size)]


@pytest.mark.parametrize("window", [1, 2, 3])
@pytest.mark.parametrize(
    "trainer",
    [{}, {"find_unused_parameters": True}, {"gradient_as_bucket_view": True}, {"clip_grad_norm": 0.1}],
    ids=str,
)
def test_the_others_train_on_what_is_left(world, tmp_path, trainer, window):
    if "clip_grad_norm" in trainer:
        trainer = {"clip_grad_norm": 1e6}  # acts, and changes nothing
    trainer = {**trainer, "grad_acc_steps": window}
    results, losses = assert_learns_as_by_hand(world, tmp_path, bad=bad_batches(world), trainer=trainer)
    left = 4 * world.size - len(bad_batches(world))
    for result in results:
        assert result["summaries"][0]["loss"] == pytest.approx(sum(losses[:left]) / left, rel=1e-12)
        assert result["summaries"][0]["skipped"] == len(bad_batches(world))
    assert len({result["hooked"] for result in results}) == 1, "hooks on gradients act on all processes alike"


@pytest.mark.parametrize("window", [1, 2])
@pytest.mark.parametrize("way", ["oom", "oom in backward"])
def test_a_process_without_memory_leaves_nobody_waiting(world, tmp_path, way, window):
    trainer = {"on_oom": "skip", "grad_acc_steps": window}
    assert_learns_as_by_hand(world, tmp_path, bad=bad_batches(world), trainer=trainer, way=way)


@pytest.mark.parametrize("window", [1, 2])
def test_so_it_is_with_batches_that_weigh_differently(world, tmp_path, window):
    case = {"bad": bad_batches(world), "count": 8 * world.size - 1, "weighted": True}
    assert_learns_as_by_hand(world, tmp_path, **case, trainer={"grad_acc_steps": window})


@pytest.mark.parametrize("uneven", ["join", "repeat"])
def test_so_it_is_where_a_process_has_run_out_of_batches(world, tmp_path, uneven):
    """The last step has one batch, which is left out; another process's own last one is left out as well."""
    count = 8 * world.size + 2
    bad = [*bad_batches(world), 3 * world.size + 1, 4 * world.size]
    assert_learns_as_by_hand(world, tmp_path, bad=bad, count=count, trainer={"uneven": uneven})


@pytest.mark.parametrize("count", [0, 2])
@pytest.mark.parametrize("on_oom", ["raise", "skip"])
def test_who_leaves_a_batch_out_or_has_none_takes_part_in_handing_out_buffers(world, tmp_path, on_oom, count):
    """The batch is left out before the step, and a process may have one batch less than others."""
    case = {"way": "hook", "model": "norm", "bad": [0, world.size + 1], "count": 8 * world.size + count}
    assert_learns_as_by_hand(world, tmp_path, **case, trainer={"on_oom": on_oom})


def test_a_run_that_is_called_again_after_an_error_in_mid_window_learns_the_same(world, tmp_path):
    case = {"bad": (3,), "count": 16 * world.size, "break_at": (2, 3), "again": True}
    assert_learns_as_by_hand(world, tmp_path, **case, trainer={"grad_acc_steps": 4})


def test_an_update_that_one_process_spoils_is_skipped_by_all(world, tmp_path):
    assert_learns_as_by_hand(world, tmp_path, bad=(), nan=2, trainer={"nonfinite": "skip"})


def test_validations_leave_out_what_any_process_does(world, tmp_path):
    results = run(world, tmp_path, trainer={}, way="raise", count=8 * world.size, bad=(), bad_val=(1,))
    assert [result["summaries"][1]["skipped"] for result in results] == [1] * world.size


@pytest.mark.parametrize("way", ["raise", "oom in backward"])
def test_a_resume_in_the_midst_of_a_window_with_skips_ends_with_the_same_bits(world, tmp_path, way):
    trainer = {"grad_acc_steps": 2, "save_every": "1 iteration", "on_oom": "raise" if way == "raise" else "skip"}
    case = {"way": way, "count": 16 * world.size, "bad": bad_batches(world)}
    straight = run(world, tmp_path / "a", trainer=trainer, **case)
    broken = run(world, tmp_path / "b", trainer=trainer, break_at=(2, 5), **case)
    assert broken == [{"broken": True}] * world.size
    resumed = run(world, tmp_path / "b", trainer=trainer | {"resume": True}, **case)
    assert [each["weights"] for each in resumed] == [each["weights"] for each in straight]
    assert [each["summaries"][-2:] for each in resumed] == [each["summaries"][-2:] for each in straight]


def test_a_resume_has_the_same_bits_where_gradients_come_in_another_order_than_parameters_are_listed(world, tmp_path):
    """A sum over three processes depends on the place of a gradient in a message."""
    case = {"way": "raise", "count": 16 * world.size, "bad": (3,), "model": "from the end"}
    straight = run(world, tmp_path / "a", trainer={}, **case)
    run(world, tmp_path / "b", trainer={"save_every": "1 iteration"}, break_at=(1, 3), **case)
    resumed = run(world, tmp_path / "b", trainer={"resume": True}, **case)
    assert [each["weights"] for each in resumed] == [each["weights"] for each in straight]


@pytest.mark.parametrize(
    ("trainer", "why"),
    [
        ({"parallel": "fsdp2"}, "trainer.parallel: fsdp2"),
        ({"static_graph": True}, "trainer.static_graph"),
        ({"max_skipped": 0}, "trainer.max_skipped: 0"),
    ],
    ids=str,
)
def test_where_a_step_has_exchanges_of_its_own_a_skip_is_an_error_that_says_so(world, tmp_path, trainer, why):
    results = world.run(folder=str(tmp_path), trainer=trainer, way="raise", count=8 * world.size, bad=(0, 1, 2))
    for result in results:
        assert f"which does not go with {why} on several processes" in result["error"]
        assert "return 0 from loss_weight" in result["error"]
