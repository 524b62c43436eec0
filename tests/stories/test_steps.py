"""What a step may do with its model on two and three processes: as on one, against a plain loop written by hand."""

import json
from pathlib import Path

import pytest
import torch

from tests.stories import steps_server
from tests.stories.test_worlds import World

SERVER = Path(__file__).parent / "steps_server.py"
FSDP2 = {"parallel": "fsdp2"}


@pytest.fixture(scope="module", params=[2, 3])
def world(request):
    world = World(request.param, SERVER)
    yield world
    world.close()


def flat(weights):
    return torch.cat([torch.tensor(value, dtype=torch.float64).flatten() for value in weights])


def run(world, tmp_path, **case):
    results = world.run(folder=str(tmp_path), **{"count": 4 * world.size, **case})
    assert [result["error"] for result in results if "error" in result] == []
    return results


def assert_learns_as_by_hand(world, tmp_path, **case):
    """To 1e-12 in float64, since gradients are added up in another order."""
    case = {"count": 4 * world.size, **case}
    expected = flat(steps_server.by_hand(case, world.size))
    results = run(world, tmp_path, **case)
    for result in results:
        assert (flat(result["weights"]) - expected).abs().max() <= 1e-12
    return results


ALIKE = sorted(set(steps_server.STEPS) - {"outside", "by_hand_too", "sometimes"})
# Torch's shards cannot be walked back twice: it says so.
WAYS = [(step, way) for step in ALIKE for way in ("ddp", "fsdp2") if (step, way) != ("second_order", "fsdp2")]


@pytest.mark.parametrize(("step", "parallel"), WAYS)
def test_a_step_uses_the_model_as_on_one_process(world, tmp_path, step, parallel):
    results = assert_learns_as_by_hand(world, tmp_path, step=step, trainer={"parallel": parallel})
    assert all(result["names"] == list(steps_server.Net().state_dict()) for result in results)
    assert all(result["is_own"] for result in results)


@pytest.mark.parametrize("setting", ["find_unused_parameters", "static_graph", "gradient_as_bucket_view"])
@pytest.mark.parametrize("step", ["method", "submodule", "twice"])
def test_so_it_does_with_every_setting_of_ddp(world, tmp_path, step, setting):
    assert_learns_as_by_hand(world, tmp_path, step=step, trainer={setting: True})


@pytest.mark.parametrize("by", ["own", "alias"])
def test_a_reference_of_ones_own_and_the_old_name_of_the_wrapped_module_are_the_model(world, tmp_path, by):
    assert_learns_as_by_hand(world, tmp_path, step="method", by=by)


def test_parameters_that_only_the_optimizer_holds_are_exchanged(world, tmp_path):
    assert_learns_as_by_hand(world, tmp_path, step="outside")


def test_parameters_outside_a_sharded_model_are_refused_by_name(world, tmp_path):
    results = world.run(folder=str(tmp_path), count=4 * world.size, step="outside", trainer=FSDP2)
    for result in results:
        assert "cannot train optimizer.param_groups[0]['params'][4], outside the model" in result["error"]


def test_a_loss_that_a_step_walks_back_itself_is_exchanged_with_the_other_one(world, tmp_path):
    assert_learns_as_by_hand(world, tmp_path, step="by_hand_too")


@pytest.mark.parametrize("change", ["unfrozen", "frozen"])
def test_an_encoder_that_is_unfrozen_or_frozen_in_the_second_epoch_is_trained_alike_everywhere(world, tmp_path, change):
    assert_learns_as_by_hand(world, tmp_path, step="forward", change=change)


@pytest.mark.parametrize("trainer", [{}, FSDP2, {"find_unused_parameters": True}], ids=str)
def test_rules_for_parameters_mean_on_several_processes_what_they_mean_on_one(world, tmp_path, trainer):
    """Rates by the class of a module, no weight decay of norms and biases, and a frozen bias."""
    assert_learns_as_by_hand(world, tmp_path, step="forward", norm=True, rules=True, trainer=trainer)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    rates = {key: rate for key, rate in rows[-3].items() if key.startswith("lr")}
    assert rates == pytest.approx(
        {"lr": 0.1, "lr/default": 0.1, "lr/default/no_decay": 0.1, "lr/ModuleDict": 0.3, "lr/ModuleDict/no_decay": 0.3}
    )


@pytest.mark.parametrize("mode", ["join", "repeat"])
@pytest.mark.parametrize("trainer", [{}, {"find_unused_parameters": True}, {"static_graph": True}, FSDP2], ids=str)
def test_a_process_without_a_batch_joins_though_steps_take_their_batches_apart(world, tmp_path, trainer, mode):
    """One process has three batches and the others two."""
    case = {"count": 4 * world.size + 1, "step": "taken_apart", "trainer": {**trainer, "uneven": mode}}
    results = assert_learns_as_by_hand(world, tmp_path, **case)
    is_repeating = mode == "repeat" or trainer in ({"static_graph": True}, FSDP2)
    for rank, result in enumerate(results):
        assert result["steps"] == (6 if rank == 0 or is_repeating else 4)
        own_batches = [indices for _, _, indices, _ in result["hooked"][:3]]
        assert [iteration for _, iteration, _, _ in result["hooked"]] == [1, 2, 3] * 2
        assert rank == 0 or own_batches[2] == own_batches[1], "hooks see the last batch of their own"


@pytest.mark.parametrize("trainer", [{}, FSDP2], ids=str)
def test_a_resume_in_the_midst_of_joining_ends_with_the_same_bits(world, tmp_path, trainer):
    """The last process has five batches and the others two, also the main one, whose running means count."""
    case = {"count": 10, "own_share": world.size, "step": "taken_apart", "norm": True}
    case["trainer"] = {"save_every": "1 iteration", **trainer}
    straight = run(world, tmp_path / "straight", **case)
    for update in (3, 4):
        resumed = run(world, tmp_path / f"broken{update}", **case, break_at=update)
        assert [each["weights"] for each in resumed] == [each["weights"] for each in straight]
        assert [each["norm"] for each in resumed] == [each["norm"] for each in straight]


def test_one_process_alone_may_call_the_model_in_hooks(world, tmp_path):
    assert_learns_as_by_hand(world, tmp_path, step="forward", picture=True)


@pytest.mark.parametrize("steps", [1, 2])
def test_buffers_are_those_of_the_main_process_at_the_first_micro_batch_of_an_update(world, tmp_path, steps):
    case = {"count": 8 * world.size, "step": "twice", "norm": True, "picture": True}
    results = run(world, tmp_path, **case, trainer={"grad_acc_steps": steps})
    for number, buffers in enumerate(zip(*(result["buffers"] for result in results), strict=True)):
        assert (number % steps > 0) or all(each == buffers[0] for each in buffers)


@pytest.mark.parametrize("val_count", [1, 3])
def test_an_average_of_weights_is_validated_with_fewer_batches_than_processes(world, tmp_path, val_count):
    run(world, tmp_path, step="forward", norm=True, average=True, val_count=val_count)


@pytest.mark.parametrize("weigh", ["host", "device", "mixed"])
@pytest.mark.parametrize("steps", [1, 2])
def test_a_window_without_weight_on_all_processes_changes_nothing_and_no_other_window(world, tmp_path, weigh, steps):
    """The losses of such a window are NaN, as means over nothing."""
    full, empty = [1, 3] * world.size, [0, 0] * world.size
    case = {"count": 16 * world.size, "weights": [*full, *empty, *empty, *full], "weigh": weigh, "step": "method"}
    assert_learns_as_by_hand(world, tmp_path, **case, trainer={"grad_acc_steps": steps, "nonfinite": "ignore"})


@pytest.mark.parametrize("steps", [1, 2])
def test_a_batch_without_weight_may_have_a_loss_of_nan_beside_others(world, tmp_path, steps):
    weights = [2, 0, 3, *[0] * (2 * world.size), 5, 0, 1, 0, 0, 4][: 4 * world.size]
    case = {"count": 8 * world.size, "weights": weights, "weigh": "host", "step": "method"}
    assert_learns_as_by_hand(world, tmp_path, **case, trainer={"grad_acc_steps": steps, "nonfinite": "ignore"})


def test_what_no_process_uses_in_an_update_is_not_touched_though_one_joins_without_a_batch(world, tmp_path):
    """Weight decay would move it, if it had a gradient of zeros."""
    case = {"count": 4 * world.size + 1, "step": "sometimes", "decay": 0.1}
    assert_learns_as_by_hand(world, tmp_path, **case, trainer={"find_unused_parameters": True})
