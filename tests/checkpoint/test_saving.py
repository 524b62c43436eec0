"""Saves in the background: of one moment, in order, and their failures are not lost."""

import math
import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.patience import PATIENCE_S
from vision3d_engine import CheckpointError, FolderError, NonFiniteError
from vision3d_engine.checkpoint import state_files as files_module
from vision3d_engine.checkpoint.manager import CheckpointManager
from vision3d_engine.checkpoint.retention import epoch_files, outdated
from vision3d_engine.checkpoint.snapshot import Buffers, Snapshot
from vision3d_engine.checkpoint.writer import BackgroundWriter


def load(path):
    return torch.load(path, weights_only=True)


class Slow:
    """Holds the writer's thread until it is let go."""

    def __init__(self, monkeypatch):
        self.go = threading.Event()
        original = files_module.write_checkpoint
        monkeypatch.setattr(files_module, "write_checkpoint", lambda *args: (self.go.wait(PATIENCE_S), original(*args)))


def test_what_is_written_is_the_state_of_the_moment_of_the_save(tmp_path, monkeypatch):
    slow, model = Slow(monkeypatch), nn.Linear(4, 4)
    manager = CheckpointManager(tmp_path, in_background=True)
    saved = {}
    for epoch in (1, 2):
        with torch.no_grad():
            model.weight.fill_(epoch)
        optimizer = torch.optim.SGD(model.parameters(), lr=epoch)
        manager.save_checkpoint(f"epoch-{epoch}.pth", {"epoch": epoch}, model, optimizer)
        saved[epoch] = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.fill_(77)
    slow.go.set()
    manager.join()
    for epoch, weight in saved.items():
        state = load(tmp_path / f"epoch-{epoch}.pth")
        assert torch.equal(state["model"]["weight"], weight)
        assert state["optimizer"]["param_groups"][0]["lr"] == epoch
        assert state["metadata"]["epoch"] == epoch


def test_a_failure_in_the_background_is_raised_by_the_next_save(tmp_path):
    model = nn.Linear(2, 2)
    manager = CheckpointManager(tmp_path, in_background=True)
    with torch.no_grad():
        model.weight.fill_(float("inf"))
    manager.save_checkpoint("epoch-1.pth", {}, model)
    manager._writer.submit(lambda: None)
    while not manager._writer._jobs[-1].done():
        pass
    with pytest.raises(NonFiniteError, match=r"'epoch-1\.pth' is not saved, .* not finite are weight"):
        manager.save_checkpoint("epoch-2.pth", {}, model)


def test_a_full_disk_in_the_background_is_told_and_the_last_one_raised(tmp_path):
    told = []
    manager = CheckpointManager(tmp_path / "file" / "below", in_background=True, warn=told.append)
    (tmp_path / "file").write_text("")
    model = nn.Linear(2, 2)
    for epoch in (1, 2, 3):
        manager.save_checkpoint(f"epoch-{epoch}.pth", {}, model)
    with pytest.raises(FolderError, match="cannot write into the folder"):
        manager.join()
    assert len(told) == 2
    assert "Training goes on" in told[0]
    manager.join()


def test_a_value_that_would_not_load_is_refused_by_its_path_before_anything_is_written(tmp_path):
    manager = CheckpointManager(tmp_path, in_background=True)
    with pytest.raises(CheckpointError, match=r"state\['states'\]\['x'\]\[0\] is .*object.*loading it would run code"):
        manager.save_checkpoint("a.pth", {}, nn.Linear(1, 1), extra={"states": {"x": [object()]}})
    manager.join()
    assert list(tmp_path.iterdir()) == []


def test_jobs_run_in_order_and_one_at_a_time():
    writer, done, running = BackgroundWriter(in_background=True), [], []

    def job(number):
        running.append(number)
        assert len(running) == 1
        done.append(number)
        running.pop()

    for number in range(20):
        writer.submit(lambda number=number: job(number))
    assert writer.join() is None
    assert writer.failures() == []
    assert done == list(range(20))


def test_memory_of_a_snapshot_is_used_again():
    buffers, state = Buffers(), {"a": torch.ones(5), "b": [torch.zeros(5), np.float32(1)]}
    with Snapshot(state, buffers) as first:
        places = sorted(tensor.data_ptr() for tensor in (first["a"], first["b"][0]))
        assert first["b"][1] == 1.0
    with Snapshot(state, buffers) as second:
        assert sorted(tensor.data_ptr() for tensor in (second["a"], second["b"][0])) == places


def test_a_tensor_that_is_there_twice_is_copied_once():
    weight = torch.ones(3)
    with Snapshot({"a": weight, "b": weight}, Buffers()) as copied:
        assert copied["a"] is copied["b"] is not weight


@given(
    epochs=st.lists(st.integers(1, 60), max_size=20),
    latest=st.integers(-1, 5),
    every=st.integers(0, 7),
    best=st.integers(0, 3),
    data=st.data(),
)
def test_retention_keeps_the_latest_the_best_and_every_nth(epochs, latest, every, best, data):
    names = [f"epoch-{epoch}.pth" for epoch in epochs] + ["mine.pth", "best_x.pth", "checkpoint.pth"]
    scores = {epoch: data.draw(st.sampled_from([0.1, 0.5, 0.9, float("nan")])) for epoch in set(epochs)}
    options = {"keep_every": every, "keep_best": best, "scores": {"x": scores}}
    gone = outdated(names, latest, **options)
    kept = [name for name in epoch_files(names) if name not in gone]
    assert set(gone) <= set(epoch_files(names))
    if latest <= 0:
        assert gone == []
        return
    assert kept[-latest:] == epoch_files(names)[-latest:]
    assert not every or all(int(name[6:-4]) % every for name in gone)
    for score in (scores[int(name[6:-4])] for name in gone):
        better = [other for other in scores.values() if other >= score]
        assert math.isnan(score) or len(better) > best or best == 0
    assert outdated(kept, latest, **options) == []


def test_a_run_keeps_its_best_epochs(tmp_path):
    manager = CheckpointManager(tmp_path, 1, keep_best=2, keep_every=4)
    manager.add_metric("score")
    for epoch, score in enumerate([0.9, 0.1, 0.8, 0.2, 0.3, float("nan")], start=1):
        manager.save_checkpoint(f"epoch-{epoch}.pth", {"epoch": epoch}, nn.Linear(1, 1))
        manager.update_best_model({"score": score}, {"epoch": epoch}, nn.Linear(1, 1))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["best_score.pth", "epoch-1.pth", "epoch-3.pth", "epoch-4.pth", "epoch-6.pth"]
