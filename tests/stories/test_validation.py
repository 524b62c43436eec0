"""Validations in the midst of epochs, in real processes: killed, stopped, and on two processes."""

import json
import os
import signal

import pytest
import torch

from tests.patience import eventually
from tests.stories import test_several_processes
from tests.stories.test_stopping import children, finish, open_gate, result, start, steps_in, wait_for

OPTIONS = {"val_every": "4 iterations", "val_first": True}  # of 6 in an epoch


def rows_of(folder):
    """Return the rows of a run's numbers without their times."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "time_s"} for row in rows]


def saved(folder):
    """Return the training steps that ``checkpoint.pth`` has, and those at the latest validation that it knows of."""
    path = folder / "checkpoints" / "checkpoint.pth"
    progress = torch.load(path, weights_only=True)["progress"] if path.exists() else {}
    return progress.get("total_steps"), progress.get("validated")


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight") / "run"
    return result(folder, **OPTIONS), rows_of(folder)


# Where a run is killed, and what is saved there: total steps, and those at the latest validation.
PLACES = [
    ("val 1.2", (4, 0)),
    pytest.param("val 0.2", (0, -1), marks=pytest.mark.slow),
    pytest.param("train 1.6", (4, 4), marks=pytest.mark.slow),
    pytest.param("val 2.1", (8, 4), marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("gate", "known"), PLACES)
def test_a_run_killed_around_a_validation_resumes_to_the_same_bits_and_rows(gate, known, straight, tmp_path):
    process = start(tmp_path / "run", gate=gate, **OPTIONS)
    wait_for(process, "AT GATE")
    eventually(lambda: saved(tmp_path / "run") == known)
    process.kill()
    finish(process)
    code, text = finish(start(tmp_path / "run", resume=True, **OPTIONS))
    assert code == 0, text
    assert steps_in(text)[0] == known[0] + 1
    assert ("VALIDATES" in text.partition("STEP")[0]) is (known[0] > known[1])
    assert (text.partition("RESULT ")[2].split()[0], rows_of(tmp_path / "run")) == straight


@pytest.mark.slow
def test_a_signal_in_a_validation_within_an_epoch_ends_it_at_once_and_costs_no_training(straight, tmp_path):
    process = start(tmp_path / "run", gate="val 1.2", **OPTIONS)
    wait_for(process, "AT GATE")
    process.terminate()
    open_gate(tmp_path / "run", "val 1.2")
    code, text = finish(process)
    assert code == 143
    assert "VALIDATES" not in text
    code, text = finish(start(tmp_path / "run", resume=True, **OPTIONS))
    assert steps_in(text)[0] == 5
    assert (text.partition("RESULT ")[2].split()[0], rows_of(tmp_path / "run")) == straight


def test_two_processes_validate_within_epochs_as_one_does(tmp_path):
    """With the global batch unchanged all numbers agree to summation order in float64 (1e-12)."""
    options = {"val_every": "4 iterations", "val_first": True, "ema_decay": 0.9}
    (one,) = test_several_processes.run(tmp_path / "one", 1, 7, 1, **options)
    first, second = test_several_processes.run(tmp_path / "two", 2, 7, 1, **options)
    assert first["weights"] == second["weights"]
    assert torch.allclose(torch.tensor(first["weights"][0]), torch.tensor(one["weights"][0]), atol=1e-12, rtol=0)
    rows = [[row for row in rows_of(tmp_path / name) if row["phase"] == "val"] for name in ("one", "two")]
    assert [[row["step"] for row in found] for found in rows] == [[0, 4, 8, 12]] * 2
    for alone, shared in zip(*rows, strict=True):
        assert abs(alone["values"]["mae"] - shared["values"]["mae"]) <= 1e-12


@pytest.mark.slow
def test_two_processes_killed_in_a_validation_within_an_epoch_resume_to_the_same_bits_and_rows(tmp_path):
    expected = result(tmp_path / "straight", processes=2, **OPTIONS)
    process = start(tmp_path / "run", processes=2, gate="val 1.2", **OPTIONS)
    wait_for(process, "AT GATE")
    eventually(lambda: saved(tmp_path / "run") == (4, 0))
    for worker in children(process.pid):
        os.kill(worker, signal.SIGKILL)
    finish(process)
    code, text = finish(start(tmp_path / "run", processes=2, resume=True, **OPTIONS))
    assert code == 0, text
    assert steps_in(text)[0] == 5
    assert text.partition("RESULT ")[2].split()[0] == expected
    assert rows_of(tmp_path / "run") == rows_of(tmp_path / "straight")
