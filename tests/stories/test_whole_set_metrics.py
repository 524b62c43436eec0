"""A metric over a whole set that several processes have counted in parts."""

import json
import os
from pathlib import Path

import pytest

from tests.stories.launching import results_of, start_ranks
from tests.stories.metric_script import measure
from tests.toys import Rows
from vision3d_engine.metrics.confusion_matrix import ConfusionMatrix

SCRIPT = Path(__file__).parent / "metric_script.py"
PATH = os.pathsep.join([str(Path(__file__).parent.parent.parent), os.environ.get("PYTHONPATH", "")])


@pytest.mark.parametrize("size", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_the_main_process_has_the_digits_of_all_samples_at_once(tmp_path, size):
    """Seven samples in batches of two: no process has as many as another."""
    rows, at_once = Rows(7), ConfusionMatrix(3)
    at_once.update(rows.x, (rows.y > 0).long())
    results = [json.loads(each) for each in results_of(start_ranks(SCRIPT, tmp_path, 7, size=size, PYTHONPATH=PATH))]
    assert at_once.compute() in results
    assert measure(tmp_path / "one", 7) == at_once.compute()
