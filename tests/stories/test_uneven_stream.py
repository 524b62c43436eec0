"""Two processes that share an odd number of batches, or data whose length changes."""

from itertools import chain, pairwise
from pathlib import Path

import pytest

from tests.stories.test_worlds import World, batches_of, by_hand, flat

SERVER = Path(__file__).parent / "stream_server.py"
LOADERS = ["build_dataloader", "plain"]
COUNT, BATCHES = 14, batches_of(14, 2)  # seven batches


@pytest.fixture(scope="module")
def world():
    world = World(2, SERVER)
    yield world
    world.close()


def finished(results):
    assert [result["error"] for result in results if "error" in result] == []
    return results


def batches_seen(result, epoch=None):
    return [indices for number, _, indices in result["seen"] if epoch in {None, number}]


def stream_of(results):
    """Return the batches of both processes in the order of the stream: batch i is with process i % 2."""
    first, second = map(batches_seen, results)
    assert len(first) == len(second)
    return [batch for both in zip(first, second, strict=True) for batch in both]


@pytest.mark.parametrize("kind", ["iter", "epoch"])
@pytest.mark.parametrize("loader", LOADERS)
def test_an_epoch_of_seven_batches_has_four_iterations_on_both_processes(world, tmp_path, loader, kind):
    results = world.run(kind=kind, loader=loader, count=COUNT, folder=str(tmp_path), trainer={"max_epoch": 3})
    for rank, result in enumerate(results):
        places = [(epoch, iteration) for epoch, iteration, _ in result["seen"]]
        own = 3 if kind == "epoch" and rank else 4  # who has three joins in the fourth without a step of its own
        assert places == [(epoch, iteration) for epoch in (1, 2, 3) for iteration in range(1, own + 1)]


@pytest.mark.parametrize("loader", LOADERS)
def test_a_stream_of_seven_batches_is_shared_batch_by_batch(world, tmp_path, loader):
    """Against a loop by hand, which takes two batches of the stream a step; 1e-12 in float64."""
    results = world.run(kind="iter", loader=loader, count=COUNT, folder=str(tmp_path), trainer={"max_epoch": 3})
    stream = [BATCHES[number % 7] for number in range(24)]
    assert stream_of(results) == stream
    _, weights = by_hand(list(map(list, zip(stream[::2], stream[1::2], strict=True))), lambda window: [1] * len(window))
    for result in results:
        assert (flat(result["weights"]) - weights).abs().max() <= 1e-12


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("loader", LOADERS)
def test_a_stream_that_was_broken_off_goes_on_with_the_same_bits(world, tmp_path, loader, steps):
    """At the end of an epoch, where one round of the data ends in mid-iteration, and in mid-epoch."""
    trainer = {"max_epoch": 4, "grad_acc_steps": steps, "save_every": f"{steps} iterations"}
    case = {"kind": "iter", "loader": loader, "count": COUNT, "shuffle": True}
    straight = world.run(**case, folder=str(tmp_path / "straight"), trainer=trainer)
    stream = stream_of(straight)
    for first, last in pairwise([0, 7, 14, 21, 28]):
        assert sorted(chain.from_iterable(stream[first:last])) == list(range(COUNT))  # no batch is lost or seen twice
    for name, ends in {"epoch": {"max_epoch": 1}, "2": {}, "6": {}, "10": {}}.items():
        folder = str(tmp_path / name)
        early = {} if ends else {"break_after": int(name)}
        broken = world.run(**case, **early, folder=folder, trainer=trainer | ends)
        resumed = world.run(**case, folder=folder, trainer=trainer | {"resume": True})
        for whole, begin, end in zip(straight, broken, resumed, strict=True):
            assert begin["seen"] + end["seen"] == whole["seen"]
            assert end["weights"] == whole["weights"]


@pytest.mark.parametrize("kind", ["iter", "epoch"])
@pytest.mark.parametrize("loader", LOADERS)
def test_two_processes_overfit_on_the_first_batches_of_each_also_after_a_resume(world, tmp_path, loader, kind):
    """Against a loop by hand over these batches, which takes two of them a step; 1e-12 in float64."""
    trainer = {"max_epoch": 3, "overfit": 2, "save_every": "1 iterations"}
    case = {"kind": kind, "loader": loader, "count": COUNT}
    straight = finished(world.run(**case, folder=str(tmp_path / "straight"), trainer=trainer))
    assert stream_of(straight) == BATCHES[:4] * 3
    _, weights = by_hand([BATCHES[:2], BATCHES[2:4]] * 3, lambda window: [1] * len(window))
    broken = world.run(**case, break_after=3, folder=str(tmp_path / "broken"), trainer=trainer)
    resumed = finished(world.run(**case, folder=str(tmp_path / "broken"), trainer=trainer | {"resume": True}))
    for whole, begin, end in zip(straight, broken, resumed, strict=True):
        assert (flat(whole["weights"]) - weights).abs().max() <= 1e-12
        assert begin["seen"] + end["seen"] == whole["seen"]
        assert end["weights"] == whole["weights"]


LENGTHS = [14, 22, 8]


@pytest.mark.parametrize("change", ["set_epoch", "hook", "exchange"])
@pytest.mark.parametrize("loader", LOADERS)
def test_two_processes_share_a_pass_whose_length_has_changed(world, tmp_path, loader, change):
    case = {"kind": "epoch", "loader": loader, "count": 6, "change": change, "lengths": LENGTHS}
    results = finished(world.run(**case, folder=str(tmp_path), trainer={"max_epoch": 3}))
    assert results[0]["weights"] == results[1]["weights"]
    for epoch, length in enumerate(LENGTHS, start=1):
        for rank, result in enumerate(results):
            own = batches_of(length, 2)[rank::2]
            found = batches_seen(result, epoch)
            assert found[: len(own)] == own
            assert len(found) <= len(batches_of(length, 2)[::2])  # one that joins in steps with its last batch again


@pytest.mark.parametrize("loader", [*LOADERS, "list"])
def test_an_exchanged_loader_begins_a_stream_of_its_own_length(world, tmp_path, loader):
    case = {"kind": "iter", "loader": loader, "count": 6, "change": "exchange", "lengths": LENGTHS}
    results = finished(world.run(**case, folder=str(tmp_path), trainer={"max_epoch": 3}))
    for epoch, length in enumerate(LENGTHS, start=1):
        batches = batches_of(length, 2)
        for rank, result in enumerate(results):
            shared = [batches[number % len(batches)] for number in range(rank, rank + len(batches), 2)]
            assert batches_seen(result, epoch) == (batches if loader == "list" else shared)
