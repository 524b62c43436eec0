"""Trying out whole scripts as real processes: several of them, and a script of the 2022 engine."""

import os
from pathlib import Path

from tests.stories.launching import outputs_of, results_of, start, start_ranks

HERE = Path(__file__).parent
IMPORTS = os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])


def environment(folder):
    """Return the variables of a program whose scratch folder lies in a folder, which is made."""
    folder.mkdir()
    return {"PYTHONPATH": IMPORTS, "TMPDIR": folder}


def scratch_in(folder):
    """Return the only scratch folder, and the names of what is in it when the program has ended."""
    (scratch,) = folder.glob("fast_dev_run-*")
    return scratch, {path.name for path in scratch.iterdir()}


def test_two_processes_share_one_scratch_folder_and_leave_its_logs(tmp_path):
    words = (tmp_path / "run", 7, 1, "--fast_dev_run", "2")
    results = results_of(start_ranks(HERE / "ddp_script.py", *words, **environment(tmp_path / "scratch")))
    assert len(results) == 2
    assert not (tmp_path / "run").exists()
    scratch, names = scratch_in(tmp_path / "scratch")
    assert names == {"config.yaml", "env.json", "events", "logs", "metrics.jsonl"}
    (log,) = (scratch / "logs").glob("train-*.log")
    passed = log.read_text().splitlines()[-1]
    assert "fast_dev_run passed: 2 training, 2 validation batches; saved " in passed
    assert "best_mae.pth" in passed


def test_a_script_of_the_old_engine_is_tried_out_as_it_is(tmp_path):
    script = HERE / "legacy" / "trainval_iter.py"
    variables = environment(tmp_path / "scratch")
    started = start(script, "--test_area", "Area_1", "--fast_dev_run", "2", **variables)
    ((code, output, errors),) = outputs_of([started])
    assert (code, "finished epoch 1 area Area_1" in output) == (0, True), errors
    assert "fast_dev_run passed: 2 training, 2 validation batches" in errors
    assert [path for path in (tmp_path / "output").rglob("*") if path.is_file()] == []
