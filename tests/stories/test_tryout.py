"""Trying out whole scripts as real processes: several of them, and a script of the 2022 engine."""

import os
import tempfile
from pathlib import Path

import pytest

from tests.stories.launching import outputs_of, results_of, start, start_ranks

HERE = Path(__file__).parent
IMPORTS = os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])


@pytest.fixture
def place():
    """Return where scratch folders are made; its path is short, since sockets of data workers lie there too."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def scratch_in(folder):
    """Return the only scratch folder, and the names of what is in it when the program has ended."""
    (scratch,) = folder.glob("fast_dev_run-*")
    return scratch, {path.name for path in scratch.iterdir()}


def test_two_processes_share_one_scratch_folder_and_leave_its_logs(place, tmp_path):
    words = (tmp_path / "run", 7, 1, "{}", "--fast_dev_run", "2")
    results = results_of(start_ranks(HERE / "ddp_script.py", *words, PYTHONPATH=IMPORTS, TMPDIR=place))
    assert len(results) == 2
    assert not (tmp_path / "run").exists()
    scratch, names = scratch_in(place)
    assert names == {"config.yaml", "env.json", "events", "logs", "metrics.jsonl"}
    (log,) = (scratch / "logs").glob("train-*.log")
    passed = next(line for line in log.read_text().splitlines() if "fast_dev_run passed" in line)
    assert "fast_dev_run passed: 2 training, 2 validation batches; saved " in passed
    assert "best_mae.pth" in passed


def test_a_script_of_the_old_engine_is_tried_out_as_it_is(place, tmp_path):
    script = HERE / "legacy" / "trainval_iter.py"
    words = ("--test_area", "Area_1", "--fast_dev_run", "2")
    started = start(script, *words, PYTHONPATH=IMPORTS, TMPDIR=place)
    ((code, output, errors),) = outputs_of([started])
    assert (code, "finished epoch 1 area Area_1" in output) == (0, True), errors
    assert "fast_dev_run passed: 2 training, 2 validation batches" in errors
    assert [path for path in (tmp_path / "output").rglob("*") if path.is_file()] == []
