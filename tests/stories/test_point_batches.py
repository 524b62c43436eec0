"""Batches by number of points in real runs, on one process and several."""

import shutil
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


def parts_of(folder, *parts, words=()):
    """Return the batches of a run that goes on so often, by processes and updates, each part in its global order."""
    found = []
    for size, updates in parts:
        processes = start_ranks(SCRIPT, folder, updates, *words, *(["--resume"] if found else []), size=size)
        found += [line.split(" ", 2)[2] for line in results_of(processes)]
    return found


def assert_same_global_order(tmp_path, *parts, words=()):
    found = parts_of(tmp_path / "cut", *parts, words=words)
    whole = parts_of(tmp_path / "whole", (1, len(found)), words=words)
    assert found == whole


@pytest.fixture(scope="module")
def begun_by_two(tmp_path_factory):
    """The folder of a run of two processes that has made three updates, for copies."""
    folder = tmp_path_factory.mktemp("begun") / "run"
    results_of(start_ranks(SCRIPT, folder, 3))
    return folder


def test_a_resume_of_two_processes_on_one_goes_on_with_the_next_batch_of_all(tmp_path):
    assert_same_global_order(tmp_path, (2, 3), (1, 7))


@pytest.mark.slow
@pytest.mark.parametrize("words", [(), ("--endless",)])
@pytest.mark.parametrize("parts", [[(1, 3), (2, 5), (1, 9)], [(2, 2), (3, 3), (2, 7)], [(2, 5), (1, 13), (3, 15)]])
def test_processes_of_any_number_go_on_with_the_batches_of_one_also_across_epochs(parts, words, tmp_path):
    assert_same_global_order(tmp_path, *parts, words=words)


def test_a_resume_with_another_bound_is_refused_and_one_with_other_updates_is_said(begun_by_two, tmp_path):
    folder = shutil.copytree(begun_by_two, tmp_path / "run")
    ((code, _, error),) = outputs_of([start(SCRIPT, folder, 5, "--resume", "--batch_points", 90)])
    assert code == 1
    assert "batch_points was 100, is 90. Give" in error
    ((code, _, error),) = outputs_of([start(SCRIPT, folder, 5, "--resume")])
    assert code == 0
    assert "trainer.grad_acc_steps=2 makes them what they were" in error


def test_one_process_that_accumulates_goes_on_as_the_updates_of_two_without_a_word(begun_by_two, tmp_path):
    folder = shutil.copytree(begun_by_two, tmp_path / "run")
    ((code, _, error),) = outputs_of([start(SCRIPT, folder, 5, "--resume", "--accumulate", 2)])
    assert code == 0
    assert "grad_acc_steps" not in error


def test_epochs_of_as_many_batches_on_another_number_of_processes_end_with_the_same_batch(tmp_path):
    whole = results_of([start(SCRIPT, tmp_path / "whole", 10, "--endless", "--iterations", 8)])
    begun = results_of(start_ranks(SCRIPT, tmp_path / "cut", 3, "--endless", "--iterations", 4))
    rest = results_of([start(SCRIPT, tmp_path / "cut", 7, "--endless", "--iterations", 8, "--resume")])
    assert sorted(begun + rest) == whole


@pytest.mark.slow
def test_an_epoch_whose_rest_is_no_whole_number_of_iterations_ends_early_which_is_said(tmp_path):
    results_of([start(SCRIPT, tmp_path, 4, "--endless", "--iterations", 6)])
    outputs = outputs_of(start_ranks(SCRIPT, tmp_path, 5, "--endless", "--iterations", 3, "--resume", size=2))
    assert [code for code, _, _ in outputs] == [0, 0]
    results_of([start(SCRIPT, tmp_path, 8, "--endless", "--iterations", 6, "--resume")])
    outputs = outputs_of(start_ranks(SCRIPT, tmp_path, 9, "--endless", "--iterations", 3, "--resume", size=2))
    assert "this epoch ends 1 batches early" in outputs[0][2]
