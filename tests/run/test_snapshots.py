"""Checkpoints that replays start from: when they are written, and which stay."""

from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.toys import ToyEpochTrainer, rows_loader, settings
from vision3d_engine.checkpoint.retention import outdated_snapshots, snapshot_name, snapshot_step
from vision3d_engine.core.errors import ConfigError


def snapshots(folder):
    return sorted(filter(None, (snapshot_step(path.name) for path in (folder / "checkpoints").glob("*.pth"))))


def left(steps):
    names = []
    for step in steps:
        names.append(snapshot_name(step))
        gone = outdated_snapshots(names, step)
        names = [name for name in names if name not in gone]
    return [snapshot_step(name) for name in names]


def test_those_at_doubling_distances_stay():
    assert left(range(100, 2100, 100)) == [900, 1200, 1500, 1700, 1800, 1900, 2000]


@given(st.lists(st.integers(1, 5), min_size=1, max_size=400))
def test_their_number_grows_with_the_logarithm_and_their_distance_with_their_age(intervals):
    steps = list(accumulate(intervals))
    kept = left(steps)
    assert kept[-1] == steps[-1]
    assert len(kept) <= 2 * steps[-1].bit_length() + 2
    for older, newer in pairwise([0, *kept]):
        assert newer - older <= max(steps[-1] - newer, 5)


def test_what_is_later_than_the_newest_goes_and_other_files_stay():
    names = [snapshot_name(step) for step in (10, 20, 30)] + ["checkpoint.pth", "replay-x.pth", "epoch-20.pth"]
    assert outdated_snapshots(names, 20) == [snapshot_name(30)]


def test_a_run_writes_them_at_updates_and_a_resume_goes_on_from_one(tmp_path):
    own = {"max_epoch": 4, "replay_every": "3 iterations", "grad_acc_steps": 2}
    ToyEpochTrainer(settings(tmp_path, **own), rows_loader(12, batch_size=2)).run()
    assert snapshots(tmp_path) == [10, 16, 20, 22]
    resumed = ToyEpochTrainer(settings(tmp_path / "other", **own), rows_loader(12, batch_size=2))
    resumed.load(str(tmp_path / "checkpoints" / snapshot_name(10)))
    assert resumed.total_steps == 10


def test_without_the_setting_none_is_written(tmp_path):
    ToyEpochTrainer(settings(tmp_path, max_epoch=2), rows_loader(12, batch_size=2)).run()
    assert snapshots(tmp_path) == []


@pytest.mark.parametrize("text", ["1 epoch", "10 min", "0 iterations", "often"])
def test_the_setting_is_a_number_of_iterations(tmp_path, text):
    with pytest.raises(ConfigError, match="such as '100 iterations'"):
        ToyEpochTrainer(settings(tmp_path, replay_every=text), rows_loader())
