"""Processes that hold other weights, resume other checkpoints or see other numbers: found, named, or made equal."""

import shutil
from pathlib import Path

import pytest
import torch

from tests.stories.test_worlds import World

SERVER = Path(__file__).parent / "replica_server.py"


@pytest.fixture(scope="module", params=[2, 3])
def world(request):
    world = World(request.param, SERVER)
    yield world
    world.close()


def errors_of(found):
    """Return the error of the run, which all processes have alike."""
    errors = {each["error"] for each in found}
    assert len(errors) == 1, errors
    return errors.pop()


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_a_run_whose_processes_stay_equal_shows_nothing_of_the_check(world, tmp_path, parallel):
    found = world.run(kind="Plain", folder=str(tmp_path), trainer={"parallel": parallel, "max_epoch": 2})
    assert errors_of(found) == ""
    steps = 24 // world.size
    assert found[0]["lines"] == [(epoch, step, ["loss"]) for epoch in (1, 2) for step in range(1, steps + 1)]


@pytest.mark.parametrize("kind", ["LossWeights", "TwoInOne", "LateEncoder"])
def test_what_is_exchanged_beside_the_first_model_stays_equal(world, tmp_path, kind):
    assert errors_of(world.run(kind=kind, folder=str(tmp_path), trainer={"max_epoch": 2})) == ""


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_a_second_network_with_its_own_optimizer_is_found_at_the_first_line(world, tmp_path, parallel):
    found = world.run(kind="SecondNetwork", folder=str(tmp_path), trainer={"parallel": parallel})
    error = errors_of(found)
    assert error.startswith("ReplicaError: ")
    assert "at epoch 1, iteration 1, 'self.critic.weight' differs (rank 0: (1, 1), torch.float32, norm " in error
    assert "1 do: self.critic.weight. Last found equal: never in this run" in error  # all biases move alike
    assert "trainer.replica_check to 'warn' or 'off'" in error


@pytest.mark.parametrize(
    ("at", "found_at", "equal_at"),
    [
        ((1, 1), "epoch 1, iteration 1,", "never in this run"),
        ((1, 3), "epoch 1, iteration 4,", "epoch 1, iteration 2."),
        ((1, 5), "epoch 1, iteration 8,", "epoch 1, iteration 4."),
        ((2, 1), "epoch 2, iteration 1,", "epoch 1, iteration 8."),
    ],
)
def test_a_weight_changed_on_one_process_is_found_soon_and_dated(world, tmp_path, at, found_at, equal_at):
    error = errors_of(world.run(kind="ByHand", folder=str(tmp_path), at=at, trainer={"max_epoch": 2}))
    equal_at = equal_at.replace("iteration 8", f"iteration {24 // world.size}")
    assert f"at {found_at} 'head.bias' differs" in error
    assert f"Last found equal: {equal_at}" in error
    assert f"rank {world.size - 1}: (1,)" in error


def test_the_end_of_an_epoch_finds_what_no_line_has(world, tmp_path):
    steps = 24 // world.size
    case = {"kind": "ByHand", "folder": str(tmp_path), "at": (1, steps)}
    error = errors_of(world.run(**case, trainer={"log_steps": 100}))
    assert f"at epoch 1, iteration {steps}, 'head.bias' differs" in error


@pytest.mark.parametrize("log_steps", [1, 100])
def test_what_is_unfrozen_in_the_midst_of_an_epoch_and_drifts_is_found(world, tmp_path, log_steps):
    case = {"kind": "UnfrozenInTheMidst", "folder": str(tmp_path)}
    assert "'encoder.weight' differs" in errors_of(world.run(**case, trainer={"log_steps": log_steps}))


def test_a_new_parameter_group_is_looked_at_by_the_next_line(world, tmp_path):
    error = errors_of(world.run(kind="LateGroup", folder=str(tmp_path), trainer={"log_steps": 3}))
    assert "at epoch 1, iteration 3, 'self.scale' differs" in error


def test_what_one_process_alone_trains_is_named(world, tmp_path):
    error = errors_of(world.run(kind="OneGroup", folder=str(tmp_path)))
    assert "iteration 2, 'self.scale' differs (rank" in error
    assert "not trained" in error


def test_a_frozen_encoder_that_differs_is_found_when_it_is_trained(world, tmp_path):
    case = {"kind": "LateEncoder", "folder": str(tmp_path), "drifts": True}
    error = errors_of(world.run(**case, trainer={"max_epoch": 2}))
    assert "at epoch 2, iteration 1, 'encoder.weight' differs" in error


def test_a_warning_is_said_once_and_off_says_nothing(world, tmp_path):
    case = {"kind": "SecondNetwork", "folder": str(tmp_path / "warn")}
    found = world.run(**case, trainer={"replica_check": "warn", "max_epoch": 2})
    assert errors_of(found) == ""
    assert found[0]["log"].count("'self.critic.weight' differs") == 1
    case = {"kind": "SecondNetwork", "folder": str(tmp_path / "off")}
    found = world.run(**case, trainer={"replica_check": "off"})
    assert errors_of(found) == ""
    assert "differs" not in found[0]["log"]


# --------------------------------------------------------------------------------------------- resuming


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_a_resume_where_one_process_finds_no_checkpoint_is_refused(world, tmp_path, parallel):
    case = {"kind": "Plain", "folder": str(tmp_path), "shared": False}
    trainer = {"max_epoch": 1, "parallel": "ddp"}
    assert errors_of(world.run(**case, trainer=trainer)) == ""  # only rank 0 has written
    trainer = {"max_epoch": 2, "resume": True, "parallel": parallel}
    error = errors_of(world.run(**case, trainer=trainer))
    assert error.startswith(
        "CheckpointError: the processes do not go on from one checkpoint: rank 0: a 'checkpoint.pth'"
    )
    assert f"rank 1: no 'checkpoint.pth' in '{tmp_path / 'rank1' / 'checkpoints'}'" in error
    assert "a folder that all machines share, or copy rank 0's checkpoint folder" in error


@pytest.mark.parametrize("what", ["epochs", "weights"])
def test_a_resume_from_different_checkpoints_is_refused_and_from_copies_goes_on(world, tmp_path, what):
    case = {"kind": "Plain", "folder": str(tmp_path), "shared": False}
    assert errors_of(world.run(**case)) == ""
    folders = [tmp_path / f"rank{rank}" / "checkpoints" for rank in range(world.size)]
    for folder in folders[1:]:
        shutil.copytree(folders[0], folder, dirs_exist_ok=True)
    last = folders[-1] / "checkpoint.pth"
    state = torch.load(last)
    if what == "epochs":
        state["extra"] = None
        for part in (state["metadata"], state.get("progress", {})):
            part |= {"epoch": 2, "total_steps": 48}
    else:
        state["model"]["head.bias"] += 1
    torch.save(state, last)
    trainer = {"max_epoch": 3, "resume": True}
    error = errors_of(world.run(**case, trainer=trainer))
    steps = 24 // world.size
    assert error.startswith("CheckpointError: the processes do not go on from one checkpoint: rank")
    assert f": epoch 1, total_steps {steps}, weights " in error
    shutil.copy(folders[0] / "checkpoint.pth", last)
    found = world.run(**case, trainer=trainer)
    assert errors_of(found) == ""
    assert {each["total_steps"] for each in found} == {3 * steps}


# --------------------------------------------------------------------------------------------- numbers


def test_a_metric_of_the_main_process_selects_the_best_model(world, tmp_path):
    found = world.run(kind="MainMetric", folder=str(tmp_path), metric="count", trainer={"max_epoch": 2})
    assert errors_of(found) == ""
    assert (tmp_path / "checkpoints" / "best_count.pth").exists()
    assert [[each["count"] for each in one["summaries"]] for one in found] == [[25.0, 26.0]] * world.size
    assert "differs between the processes" not in found[0]["log"]


def test_numbers_that_differ_are_those_of_the_main_process_and_said_once(world, tmp_path):
    found = world.run(kind="OtherMetric", folder=str(tmp_path), metric="mine", trainer={"max_epoch": 2})
    assert errors_of(found) == ""
    for one in found:
        assert [each["mine"] for each in one["summaries"]] == [10.0, 20.0]
        assert [each["note"] for each in one["summaries"]] == ["kept", "kept"]
        assert not any("stray" in each for each in one["summaries"])
    log = found[0]["log"]
    assert log.count("'mine' of after_val_epoch differs between the processes (rank 0: 10.0; rank 1: 11.0") == 1
    assert log.count("'mine' of after_val_epoch") == log.count("'stray' of after_val_epoch") == 1
    assert "'nan' of" not in log


def test_a_metric_that_the_main_process_lacks_is_refused_on_all(world, tmp_path):
    error = errors_of(world.run(kind="OtherMetric", folder=str(tmp_path), metric="stray"))
    assert "save_best_model_on_metric('stray'): the validation summary has no number 'stray'" in error


# --------------------------------------------------------------------------------------------- names of states


@pytest.mark.parametrize("wraps", [True, False])
def test_an_average_of_a_wrapped_model_goes_on_whatever_wraps_it(world, tmp_path, wraps):
    case = {"kind": "Averaged", "folder": str(tmp_path)}
    before = world.run(**case, wraps=wraps)
    assert errors_of(before) == ""
    after = world.run(**case, wraps=not wraps, trainer={"resume": True})
    assert errors_of(after) == ""
    assert [each["ema"] for each in after] == [each["ema"] for each in before]
