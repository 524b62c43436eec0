"""Batches by number of points in real runs, on one process and several."""

from pathlib import Path

import pytest

from tests.stories.launching import outputs_of, results_of, start, start_ranks

SCRIPT = Path(__file__).parent / "points_script.py"


@pytest.mark.slow
def test_two_processes_train_on_the_batches_and_samples_of_one_also_through_a_resume_in_mid_epoch(tmp_path):
    whole = results_of([start(SCRIPT, tmp_path / "whole", 18)])
    begun = results_of(start_ranks(SCRIPT, tmp_path / "cut", 3))
    rest = results_of(start_ranks(SCRIPT, tmp_path / "cut", 5, "--resume"))
    assert len(begun) == 6
    common = sorted(begun + rest)
    assert common == whole[: len(common)]


@pytest.mark.slow
@pytest.mark.parametrize("at", [3, 11])
def test_a_resume_has_the_batches_and_samples_of_a_run_without_a_break(at, tmp_path):
    whole = results_of([start(SCRIPT, tmp_path / "whole", 18)])
    begun = results_of([start(SCRIPT, tmp_path / "cut", at)])
    assert sorted(begun + results_of([start(SCRIPT, tmp_path / "cut", 18, "--resume")])) == whole


def test_a_resume_on_another_number_of_processes_or_with_another_bound_is_refused(tmp_path):
    results_of(start_ranks(SCRIPT, tmp_path, 3))
    ((code, _, error),) = outputs_of([start(SCRIPT, tmp_path, 5, "--resume", "--batch_points", 90)])
    assert code == 1
    assert "batch_points was 100, is 90; batches_per_step was 2, is 1" in error
