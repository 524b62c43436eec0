"""Runs of real processes that end before their last epoch: on two as on one, killed and stopped around their end."""

import json
import os
from pathlib import Path

import pytest
import torch

from tests.stories import ending_server
from tests.stories.launching import outputs_of, results_of, start
from tests.stories.test_worlds import World

SERVER = Path(__file__).parent / "ending_server.py"


@pytest.fixture(scope="module")
def world():
    world = World(2, SERVER)
    yield world
    world.close()


def flat(weights):
    return torch.cat([torch.tensor(value, dtype=torch.float64).flatten() for value in weights])


def run(world, folder, **case):
    results = world.run(folder=str(folder), **case)
    assert [result["error"] for result in results if "error" in result] == []
    assert results[0]["weights"] == results[1]["weights"]
    return results[0]


def on_one(folder, trainer, **case):
    """Run a case on one process that accumulates what two processes do at a time."""
    steps = trainer.get("grad_acc_steps", 1)
    return ending_server.run(
        {"folder": str(folder), "trainer": {**trainer, "grad_acc_steps": 2 * steps, "log_steps": 4}, **case}
    )


def stop_at(*at, rank=1):
    return [{"at": list(at), "rank": rank, "do": "stop"}]


def assert_alike(two, one):
    """The same updates, weights and means, as far as sums in another order let them."""
    assert (two["epoch"], two["updates"]) == (one["epoch"], one["updates"])
    assert (flat(two["weights"]) - flat(one["weights"])).abs().max() <= 1e-12
    assert [moment[:2] for moment in two["moments"]] == [moment[:2] for moment in one["moments"]]
    assert [moment[2] for moment in two["moments"]] == pytest.approx([moment[2] for moment in one["moments"]])


KINDS = ["epoch", "iter"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_stop_on_one_rank_ends_all_where_it_ends_one_process(world, kind, tmp_path):
    two = run(world, tmp_path / "two", kind=kind, acts=stop_at("train_step", [2, 1]))
    assert (two["epoch"], two["steps"], two["updates"]) == (2, 5, 5)
    one = on_one(tmp_path / "one", {}, kind=kind, acts=stop_at("train_step", [2, 1], rank=0))
    assert_alike(two, one)


@pytest.mark.parametrize("at", [["train_step", [2, 3]], ["val_step", [2, 1]], ["after_val_epoch", [2]]])
def test_a_stop_behind_the_last_log_line_of_an_epoch_ends_all_after_its_validation(world, at, tmp_path):
    two = run(world, tmp_path, acts=stop_at(*at))
    assert (two["epoch"], two["steps"]) == (2, 6)


SLOW = [({}, 10), ({"grad_acc_steps": 2}, 12), ({"parallel": "fsdp2"}, 10)]


@pytest.mark.parametrize(
    ("trainer", "count"),
    [
        ({}, 12),
        ({"grad_acc_steps": 2}, 10),
        ({"parallel": "fsdp2"}, 12),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in SLOW),
    ],
    ids=str,
)
def test_ranks_that_end_in_mid_epoch_go_on_to_the_bits_of_a_run_that_never_ended(world, trainer, count, tmp_path):
    """With ten rows one process has three batches in an epoch, and the other one two."""
    longer = {"max_epoch": None, "max_updates": 5, **trainer}
    shorter = {**longer, "max_updates": 3 if "grad_acc_steps" in trainer else 4}
    straight = run(world, tmp_path / "straight", trainer=longer, count=count)
    cut = run(world, tmp_path / "cut", trainer=shorter, count=count)
    assert cut["moments"][-1][0] == "after_train"
    again = run(world, tmp_path / "cut", trainer={**shorter, "resume": True}, count=count)
    assert [moment for moment, *_ in again["moments"]] == ["after_train"]
    extended = run(world, tmp_path / "cut", trainer={**longer, "resume": True}, count=count)
    assert extended["weights"] == straight["weights"]
    assert extended["moments"] == straight["moments"][-len(extended["moments"]) :]


def test_so_many_updates_are_those_of_one_process(world, tmp_path):
    trainer = {"max_epoch": None, "max_updates": 5}
    two = run(world, tmp_path / "two", trainer=trainer)
    assert two["updates"] == 5
    assert_alike(two, on_one(tmp_path / "one", trainer))


def test_early_stopping_follows_the_main_process_on_all(world, tmp_path):
    trainer = {"max_epoch": 6, "early_stopping_metric": "score", "early_stopping_mode": "max"}
    case = {"trainer": {**trainer, "early_stopping_patience": 2}, "scores": [1.0, 3.0, 2.0, 3.0, 9.0, 9.0]}
    two = run(world, tmp_path / "two", **case)
    assert two["epoch"] == 4
    assert_alike(two, on_one(tmp_path / "one", **case))


def test_a_stop_on_one_rank_survives_that_all_are_resumed(world, tmp_path):
    straight = run(world, tmp_path / "straight")
    stopped = run(world, tmp_path / "stopped", acts=stop_at("train_step", [2, 1]))
    assert stopped["steps"] == 5
    resumed = run(world, tmp_path / "stopped", trainer={"resume": True})
    assert resumed["weights"] == straight["weights"]


# ------------------------------------------------------------------------------------------------- processes that end


def case_of(folder, *acts, **trainer):
    acts = [{"at": ["train_step", [2, 1]], "do": "stop"}, *acts]
    return json.dumps({"folder": str(folder), "trainer": trainer, "acts": acts})


def script(case):
    """Start a process that runs one case; it finds the tests' modules."""
    path = os.pathsep.join([str(SERVER.parent.parent.parent), os.environ.get("PYTHONPATH", "")])
    return start(SERVER, case, PYTHONPATH=path)


PLACES = [["train_step", [2, 2]], ["after_val_epoch", [2]]]


@pytest.mark.parametrize(
    ("at", "number", "code"),
    [
        (["val_step", [2, 2]], "SIGTERM", 143),
        *(pytest.param(at, "SIGKILL", -9, marks=pytest.mark.slow) for at in PLACES),
    ],
)
def test_a_process_that_is_ended_on_its_way_to_the_end_makes_up_for_the_rest(at, number, code, tmp_path):
    straight = ending_server.run(json.loads(case_of(tmp_path / "straight")))
    ((found, _, _),) = outputs_of([script(case_of(tmp_path / "ended", {"at": at, "do": number}))])
    assert found == code
    (result,) = results_of([script(case_of(tmp_path / "ended", resume=True))])
    result = json.loads(result)
    assert result["weights"] == straight["weights"]
    assert result["steps"] == straight["steps"] == 8
    assert [moment for moment, *_ in result["moments"]] == ["after_train_epoch", "after_val_epoch", "after_train"]
