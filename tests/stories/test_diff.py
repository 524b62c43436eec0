"""``vision3d-engine diff`` on runs of real processes."""

import re
from pathlib import Path

import pytest

from tests.patience import PATIENCE_S
from tests.stories.forking import run_forked
from tests.stories.launching import outputs_of, start_ranks

SCRIPT = Path(__file__).with_name("replay_script.py")


def train(folder, processes, *words):
    for code, _, error in outputs_of(start_ranks(SCRIPT, "--folder", folder, *words, size=processes)):
        assert code == 0, error


def command(folder, *words):
    return run_forked(["-m", "vision3d_engine", *words], cwd=folder, timeout=PATIENCE_S)


def test_one_process_and_two_differ_in_the_batches_of_a_step(tmp_path):
    for processes in (1, 2):
        train(tmp_path / str(processes), processes)
    done = command(tmp_path, "diff", "1", "2")
    assert done.returncode == 1, done.stderr
    assert "\n  processes  1 " in done.stdout
    assert "numbers: differ from step 2 on (epoch 1, iteration 2); until then the same bits (1 compared)" in done.stdout
    (batch,) = re.findall("^batch   other samples: (.*) in A; (.*) in B$", done.stdout, re.MULTILINE)
    assert len({*", ".join(batch).split(", ")}) == 4
    assert "likeliest cause: the batch holds other samples: processes is 1 and 2" in done.stdout


@pytest.mark.slow
def test_the_samples_that_two_processes_are_said_to_have_read_are_those_of_a_replay(tmp_path):
    for processes in (1, 2):
        train(tmp_path / str(processes), processes)
    (said,) = re.findall(" in A; (.*) in B", command(tmp_path, "diff", "1", "2").stdout)
    replayed = command(tmp_path, "replay", SCRIPT, "--step", 2, "--", "--folder", tmp_path / "2")
    assert replayed.returncode == 0, replayed.stderr
    assert re.findall(r"^  (\d+) \(cloud-", replayed.stdout, re.MULTILINE) == said.split(", ")
