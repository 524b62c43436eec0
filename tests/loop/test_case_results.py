"""What a test keeps of its cases while it walks: with the states of metrics, which cover what counts as done."""

import pytest
import torch

from vision3d_engine.core.errors import CheckpointError, FolderError
from vision3d_engine.distributed.world import World
from vision3d_engine.loop import case_block
from vision3d_engine.loop.case_results import CaseResults, to_bytes
from vision3d_engine.results.folder import ResultsFolder
from vision3d_engine.results.journal import Journal


class Counted:
    """A metric over the whole set, as a pass has it."""

    def __init__(self):
        self.seen = torch.zeros(8)

    def state_dict(self):
        return {"seen": self.seen}

    def add_state(self, state):
        self.seen = self.seen + state["seen"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(case_block, "_CASES", 2)
    folder = ResultsFolder(tmp_path)
    folder.path.mkdir()
    folder.open({}, print, resume=False, overwrite=False)
    return folder


def walk(folder, attempt, batches, metric, total=6):
    """Walk batches that are not done, as an attempt of one process; the last block stays open."""
    results = CaseResults(folder, World(torch.device("cpu")), attempt, total, {})
    results.follow(metric)
    with results.writing():
        for number in batches:
            if number not in results.done_here:
                results.open_batch(number + 1, [number])
                results.open_case(0, 1, lambda: None)
                metric.seen[number] += 1
                results.close_case()
                results.update({"x": float(number)}, 1)
                results.close_batch()
    return results


def test_a_state_and_what_it_covers_are_one_record(folder, monkeypatch):
    walk(folder, 1, range(2), Counted())
    with monkeypatch.context() as patched:
        patched.setattr(Journal, "_save", lambda self, state: None)  # killed between the lines and their state
        walk(folder, 2, range(4), Counted())
    walk(folder, 3, range(5), Counted())
    metric = Counted()
    results = walk(folder, 4, range(6), metric)
    assert results.done_here == {0, 1, 2, 3}
    assert metric.seen.tolist() == [0, 0, 0, 0, 1, 1, 0, 0]
    assert results.means() == {"x": 2.5}
    assert metric.seen.tolist() == [1, 1, 1, 1, 1, 1, 0, 0]
    assert len(list(folder.progress.glob("*.state"))) == 3


def test_an_attempt_after_the_end_counts_nothing_twice(folder):
    walk(folder, 1, range(6), Counted())
    metric = Counted()
    results = walk(folder, 2, range(6), metric)
    results.means()
    assert metric.seen.tolist() == [1, 1, 1, 1, 1, 1, 0, 0]


def test_a_state_that_would_not_load_as_data_is_refused_where_it_is_kept(folder):
    metric = Counted()
    metric.state_dict = lambda: {"seen": object()}
    with pytest.raises(CheckpointError, match="seen"):
        walk(folder, 1, range(2), metric)


def test_a_table_that_lacks_batches_is_no_table(folder):
    results = walk(folder, 1, range(4), Counted(), total=5)
    with pytest.raises(FolderError, match="has the results of 4 batches, and the data set has 5"):
        results.means()
    assert not (folder.output / "results.csv").exists()


def test_what_a_slower_process_still_writes_is_waited_for(folder, monkeypatch):
    results = walk(folder, 1, range(4), Counted())
    lines = [{"batch": batch, "opened": 0, "skipped": 0, "files": [], "cases": []} for batch in (4, 5)]
    slower, state, calls = Journal(folder.progress, 1, rank=1), to_bytes({"seen": torch.zeros(8)}), []
    slower.add(lines[:1], state)

    def gather(world, value):
        if not calls:
            slower.add(lines[1:], state)  # which removes the state before it
        calls.append(value)
        return [[] if isinstance(value, list) else value]

    monkeypatch.setattr(World, "gather", gather)
    assert results.means() == {"x": 1.5}
    slower.close()
