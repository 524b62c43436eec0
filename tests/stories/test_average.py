"""The moving average of the weights on two processes: as on one, whole and in shards."""

import os
import signal
from pathlib import Path

import pytest
import torch

from tests.stories import parallel_server, steps_server
from tests.stories.launching import outputs_of, start_ranks
from tests.stories.test_worlds import World
from vision3d_engine.checkpoint.files import read_checkpoint
from vision3d_engine.commands import main

HERE = Path(__file__).parent
WAYS = pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
EMA = {"ema_decay": 0.9}


@pytest.fixture(scope="module")
def world():
    world = World(2, HERE / "parallel_server.py")
    yield world
    world.close()


@pytest.fixture(scope="module")
def steps_world():
    world = World(2, HERE / "steps_server.py")
    yield world
    world.close()


def run(world, folder, **case):
    found = world.run(folder=str(folder), **case)
    assert [result["error"] for result in found if "error" in result] == []
    return found


def file(folder, name="checkpoint.pth"):
    return read_checkpoint(Path(folder) / "checkpoints" / name)


def distance(one, other):
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@WAYS
@pytest.mark.parametrize("options", [{}, {"ema_every": 2, "ema_warmup": False}, {"grad_acc_steps": 2}], ids=str)
def test_two_processes_average_as_one_that_accumulates_their_batches(steps_world, tmp_path, parallel, options):
    """To 1e-12 in float64, since gradients are added up in another order; also where hooks call the model."""
    case = {"count": 20, "step": "forward", "picture": "all"}
    own_steps = options.get("grad_acc_steps", 1)
    run(steps_world, tmp_path / "two", **case, trainer={**EMA, **options, "parallel": parallel, "fsdp_min_params": 10})
    steps_server.run(
        {"folder": str(tmp_path / "one"), **case, "trainer": {**EMA, **options, "grad_acc_steps": 2 * own_steps}}
    )
    for name in ("epoch-1.pth", "checkpoint.pth"):
        two, one = (file(tmp_path / folder, name) for folder in ("two", "one"))
        assert distance(one["model"], two["model"]) <= 1e-12
        assert distance(one["raw_model"], two["raw_model"]) <= 1e-12
        assert distance(one["model"], one["raw_model"]) > 1e-4
        assert one["ema"] == two["ema"]


def test_hooks_that_call_the_model_around_a_validation_find_the_same_weights_whole_and_in_shards(steps_world, tmp_path):
    """What a call has gathered of a sharded model is of no use once average and weights are exchanged."""
    case = {"count": 8, "step": "forward", "picture": "all"}
    trainer = {**EMA, "save_every": "5 epochs"}  # a save would drop what was gathered
    whole = run(steps_world, tmp_path / "ddp", **case, trainer=trainer)
    shared = run(steps_world, tmp_path / "fsdp2", **case, trainer={**trainer, "parallel": "fsdp2"})
    one, two = (torch.tensor(found[0]["pictures"]) for found in (whole, shared))
    assert (one - two).abs().max() <= 1e-12


@WAYS
def test_two_processes_train_the_same_bits_with_and_without_an_average(world, tmp_path, parallel):
    """With batch norms, dropout and a validation on unequal shares."""
    trainer = {"parallel": parallel, "max_epoch": 2}
    off = run(world, tmp_path / "off", trainer=trainer)
    for number, options in enumerate(({}, {"ema_buffers": True, "ema_every": 2})):
        on = run(world, tmp_path / str(number), trainer={**trainer, **EMA, **options})
        assert [result["model"] for result in on] == [result["model"] for result in off]
        assert on[0]["summary"] != off[0]["summary"]


@WAYS
@pytest.mark.parametrize("buffers", [False, True])
def test_the_best_file_of_two_processes_has_the_score_that_it_was_chosen_for(world, tmp_path, parallel, buffers):
    found = run(world, tmp_path, trainer={**EMA, "parallel": parallel, "ema_buffers": buffers})
    for name in ("best_mae.pth", "checkpoint.pth"):
        tester = parallel_server.Tester(str(tmp_path), name)
        tester.run()
        assert tester.summary["mae"] == pytest.approx(found[0]["summary"]["mae"], rel=1e-12)


@pytest.mark.parametrize(
    ("parallel", "number", "at"),
    [
        ("fsdp2", signal.SIGKILL, 15),
        pytest.param("fsdp2", signal.SIGTERM, 9, marks=pytest.mark.slow),
        pytest.param("ddp", signal.SIGKILL, 15, marks=pytest.mark.slow),
        pytest.param("ddp", signal.SIGTERM, 9, marks=pytest.mark.slow),
    ],
)
def test_a_run_that_is_killed_and_resumed_ends_with_the_bits_of_its_average(world, tmp_path, parallel, number, at):
    trainer = {**EMA, "parallel": parallel, "max_epoch": 3, "grad_acc_steps": 2, "save_every": "2 iterations"}
    straight = run(world, tmp_path / "a", trainer=trainer)
    codes = launched({"folder": str(tmp_path / "b"), "signal": (int(number), at), "trainer": trainer}, tmp_path)
    assert all(codes)
    assert file(tmp_path / "b")["progress"]["is_open"]
    resumed = run(world, tmp_path / "b", trainer={**trainer, "resume": True})
    assert [result["summary"] for result in resumed] == [result["summary"] for result in straight]
    expected, found = file(tmp_path / "a"), file(tmp_path / "b")
    for part in ("model", "raw_model"):
        assert all(torch.equal(found[part][name], value) for name, value in expected[part].items())
    assert found["ema"] == expected["ema"]


def launched(case, folder):
    """Run a case in two processes of its own; return the exit code of each."""
    script = folder / "script.py"
    script.write_text(f"from tests.stories.parallel_server import run\nrun({case!r})")
    path = os.pathsep.join([str(HERE.parent.parent), os.environ.get("PYTHONPATH", "")])
    return [code for code, _, _ in outputs_of(start_ranks(script, PYTHONPATH=path))]


@pytest.mark.parametrize(("before", "after"), [("fsdp2", "ddp"), ("ddp", "fsdp2")])
def test_an_average_goes_on_where_processes_share_the_model_in_another_way(world, tmp_path, before, after):
    """To 1e-12: only sums over processes are taken in another order."""
    run(world, tmp_path / "a", trainer={**EMA, "max_epoch": 2, "parallel": before})
    run(world, tmp_path / "b", trainer={**EMA, "max_epoch": 1, "parallel": before})
    run(world, tmp_path / "b", trainer={**EMA, "max_epoch": 2, "parallel": after, "resume": True})
    expected, found = file(tmp_path / "a"), file(tmp_path / "b")
    assert distance(expected["model"], found["model"]) <= 1e-12
    assert distance(expected["raw_model"], found["raw_model"]) <= 1e-12
    assert found["ema"] == expected["ema"]


def test_one_file_made_of_shards_holds_both_and_resumes_on_one_process(world, tmp_path):
    run(world, tmp_path / "shards", trainer={**EMA, "parallel": "fsdp2"})
    target = tmp_path / "one" / "checkpoints" / "checkpoint.pth"
    main(["consolidate", str(tmp_path / "shards"), str(target)])
    state, spread = torch.load(target, weights_only=True), file(tmp_path / "shards")
    assert distance(state["raw_model"], spread["raw_model"]) == 0
    case = {"batch_size": 4, "trainer": {**EMA, "resume": True}}
    trainer = parallel_server.Trainer(str(tmp_path / "one"), case)
    trainer._run._resuming.start()
    assert distance(trainer.model.state_dict(), state["raw_model"]) == 0
    with trainer._run.average.in_model():
        assert distance(trainer.model.state_dict(), state["model"]) == 0


def test_shards_that_are_not_finite_are_named_on_every_process_and_not_saved(world, tmp_path):
    trainer = {**EMA, "parallel": "fsdp2", "max_epoch": 2, "nonfinite": "stop", "log_steps": 100}
    found = world.run(folder=str(tmp_path), break_at=6, trainer=trainer)
    assert all("not finite are last.weight" in result["error"] for result in found)
    assert not list((tmp_path / "checkpoints").glob("*.pth"))
