"""The same numbers on one, two and three processes of a run, against sums written by hand."""

import os
from multiprocessing.connection import Listener
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.patience import PATIENCE_S
from tests.stories.launching import start_ranks, start_unheard
from tests.stories.world_server import Rows, linear

SERVER = Path(__file__).parent / "world_server.py"


class World:
    """Processes started once, which run one case after the other."""

    def __init__(self, size, server=SERVER):
        self.listener = Listener(("localhost", 0), authkey=b"test")
        path = os.pathsep.join([str(server.parent.parent.parent), os.environ.get("PYTHONPATH", "")])
        words = (server, self.listener.address[1])
        self.processes = start_ranks(*words, size=size, start=start_unheard, PYTHONPATH=path)
        self.connections = dict(sorted((c.recv(), c) for c in (self.listener.accept() for _ in range(size))))
        self.size = size

    def run(self, **case):
        """Return what each process found, in rank order."""
        for connection in self.connections.values():
            connection.send(case)
        found = []
        for connection in self.connections.values():
            assert connection.poll(PATIENCE_S), "a process hangs"
            found.append(connection.recv())
        return found

    def close(self):
        for connection in self.connections.values():
            connection.send(None)
            connection.close()
        for process in self.processes:
            process.wait(PATIENCE_S)
        self.listener.close()


@pytest.fixture(scope="module", params=[2, pytest.param(3, marks=pytest.mark.slow)])
def world(request):
    world = World(request.param)
    yield world
    world.close()


def batches_of(count, size):
    return [list(range(start, min(start + size, count))) for start in range(0, count, size)]


def by_hand(windows, weights_of, lr=0.1):
    """Train on the weighted mean over each window of batches; return the gradients and the weights at the end."""
    model, rows = linear(), Rows(200)
    optimizer, gradients = torch.optim.SGD(model.parameters(), lr=lr), []
    for window in windows:
        optimizer.zero_grad()
        weights = weights_of(window)
        for weight, indices in zip(weights, window, strict=True):
            data = [rows[i] for i in indices]
            x, y = torch.stack([row["x"] for row in data]), torch.stack([row["y"] for row in data])
            ((model(x)[:, 0] - y).square().mean() * weight / sum(weights)).backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
        optimizer.step()
    return gradients, torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def flat(weights):
    return torch.cat([torch.tensor(value, dtype=torch.float64).flatten() for value in weights])


relaxed = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@relaxed
@given(
    count=st.integers(3, 40),
    batch_size=st.integers(1, 5),
    steps=st.integers(1, 4),
    weighted=st.booleans(),
)
def test_updates_are_those_of_the_big_batch_for_any_split_and_weights(world, count, batch_size, steps, weighted):
    """Against a hand-written loop on one process: 1e-12 in float64, since sums are taken in another order."""
    batches = batches_of(count, batch_size)
    case = {"kind": "weighted epoch" if weighted else "epoch", "count": count, "batch_size": batch_size}
    found = world.run(**case, trainer={"grad_acc_steps": steps})
    if len(batches) < world.size:
        assert "has no training batch; use fewer processes" in found[0]["error"]
        return
    chunk = world.size * steps
    windows = [batches[i : i + chunk] for i in range(0, len(batches), chunk)]
    gradients, weights = by_hand(windows, lambda window: [len(batch) if weighted else 1 for batch in window])
    for rank, result in enumerate(found):
        assert result["seen"] == batches[rank :: world.size]
        assert len(result["updates"]) == len(gradients)
        for got, expected in zip(result["updates"], gradients, strict=True):
            assert (torch.tensor(got, dtype=torch.float64) - expected).abs().max() <= 1e-12
        assert (flat(result["weights"]) - weights).abs().max() <= 1e-12


@relaxed
@given(count=st.integers(1, 17), batch_size=st.integers(1, 4), number=st.integers(1, 9), steps=st.integers(1, 3))
def test_an_endless_stream_is_shared_batch_by_batch_also_across_its_rounds(world, count, batch_size, number, steps):
    if len(batches_of(count, batch_size)) < world.size:
        return
    found = world.run(
        kind="weighted iter",
        count=count,
        batch_size=batch_size,
        trainer={"num_iters_per_epoch": number, "max_epoch": 2, "grad_acc_steps": steps},
    )
    stream = batches_of(count, batch_size) * (2 * number * world.size)
    epochs = [stream[: number * world.size], stream[number * world.size : 2 * number * world.size]]
    chunk = world.size * steps
    windows = [epoch[i : i + chunk] for epoch in epochs for i in range(0, len(epoch), chunk)]
    _, weights = by_hand(windows, lambda window: [len(batch) for batch in window])
    for rank, result in enumerate(found):
        assert result["seen"] == [batch for epoch in epochs for batch in epoch[rank :: world.size]]
        assert (flat(result["weights"]) - weights).abs().max() <= 1e-12


def test_every_sample_is_validated_once_for_every_length(world):
    """The summary is that of one process: means over all samples, to rounding (1e-12)."""
    rows = Rows(200)
    for count in range(1, 41):
        found = world.run(kind="epoch", count=6, val_count=count, val_batch_size=3)
        model = linear()
        with torch.no_grad():
            for parameter, value in zip(model.parameters(), found[0]["weights"], strict=True):
                parameter.copy_(torch.tensor(value, dtype=torch.float64))
            error = (model(rows.x[:count])[:, 0] - torch.stack([rows[i]["y"] for i in range(count)])).abs()
        sizes = [len(batch) for batch in batches_of(count, 3)]
        assert [index for index, _ in found[0]["records"]] == list(range(count))
        assert torch.allclose(torch.tensor([e for _, e in found[0]["records"]], dtype=torch.float64), error, atol=1e-12)
        for result in found:
            assert abs(result["summary"]["mae"] - float(error.mean())) <= 1e-12
            assert result["summary"]["python"] == pytest.approx(sum(size * size for size in sizes) / count)
        assert all(result["records"] == [] for result in found[1:])


def test_every_case_is_tested_once_for_every_length(world):
    for count in range(1, 41):
        found = world.run(kind="test", count=count)
        assert found[0]["records"] == list(range(count))
        assert len({result["summary"]["mae"] for result in found}) == 1


@pytest.mark.parametrize(("mode", "steps"), [("join", 4), ("drop", 3), ("cycle", 4)])
def test_uneven_numbers_of_batches_never_hang(world, mode, steps):
    count = 3 * world.size + 1  # batches of one sample: one process has four, the others three
    found = world.run(kind="epoch", count=count, batch_size=1, trainer={"uneven": mode})
    for rank, result in enumerate(found):
        own = [[i] for i in range(rank, count, world.size)]
        again = own + own[:1] if mode == "cycle" and rank else own
        assert result["seen"] == again[: max(steps, 3) if mode != "drop" else 3]
        assert len(result["updates"]) == steps
        assert result["weights"] == found[0]["weights"]


@pytest.mark.parametrize(("rule", "power"), [("linear", 1), ("sqrt", 0.5)])
def test_the_learning_rate_is_scaled_by_the_number_of_processes_on_request(world, rule, power):
    found = world.run(kind="epoch", count=6 * world.size, batch_size=2, trainer={"scale_lr": rule})
    batches = batches_of(6 * world.size, 2)
    windows = [batches[i : i + world.size] for i in range(0, len(batches), world.size)]
    _, weights = by_hand(windows, lambda window: [1] * len(window), lr=0.1 * world.size**power)
    for result in found:
        assert (flat(result["weights"]) - weights).abs().max() <= 1e-12
