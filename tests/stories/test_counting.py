"""The number of samples of all processes, through a death in mid-epoch, on as many processes and on another number."""

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.stories.counting_script import made
from tests.stories.launching import outputs_of, results_of, saved_steps, start_ranks

SCRIPT = Path(__file__).parent / "counting_script.py"
PATH = os.pathsep.join([str(Path(__file__).parent.parent.parent), os.environ.get("PYTHONPATH", "")])
# Batches and samples: two batches of two a step, and one of a single sample in a step in which the other process joins.
ROWS = [(1, 4), (2, 8), (3, 9), (3, 9), (3, 9), (4, 13), (5, 17), (6, 18), (6, 18), (6, 18)]


def counted(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(row["total_steps"], row["samples"]) for row in rows]


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The folder of a run of two processes that died when the fourth of six steps was saved."""
    folder = tmp_path_factory.mktemp("killed")
    outputs = outputs_of(start_ranks(SCRIPT, folder, 5, PYTHONPATH=PATH))
    assert all(code != 0 for code, _, _ in outputs)
    assert saved_steps(folder) == 4
    return folder


def test_two_processes_count_the_samples_of_both_and_go_on_with_them(killed, tmp_path):
    folder = Path(shutil.copytree(killed, tmp_path / "run"))
    assert results_of(start_ranks(SCRIPT, folder, 0, PYTHONPATH=PATH)) == ["18 6", "18 6"]
    assert counted(folder) == ROWS


def test_one_process_goes_on_with_the_samples_of_two(killed, tmp_path):
    folder = Path(shutil.copytree(killed, tmp_path / "run"))
    toy = made(folder, 4, resume=True)
    toy.run()
    assert (toy.samples, toy.updates) == (18, 6)
    assert counted(folder) == ROWS
