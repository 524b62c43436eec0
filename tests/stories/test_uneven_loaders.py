"""Loaders of several real processes that end before or after their length, or that nobody shares out."""

from pathlib import Path

import pytest

from tests.stories.launching import outputs_of, results_of, start_ranks

SCRIPT = Path(__file__).parent / "uneven_loader_script.py"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("train", "short", "plain"), "the training loader (Batches) of process 1 ended after 4 batches in epoch 1"),
        pytest.param(
            ("train", "plain", "short"),
            "the validation loader (Batches) of process 1 ended after 4 batches in epoch 1",
            marks=pytest.mark.slow,
        ),
        (("test", "short"), "the test loader (Batches) of process 1 ended after 4 batches in epoch 1"),
    ],
)
def test_a_loader_that_ends_before_its_length_on_one_process_ends_all_with_the_numbers(words, said, tmp_path):
    outputs = outputs_of(start_ranks(SCRIPT, tmp_path, *words))
    assert [code for code, _, _ in outputs] == [1, 1]
    assert all(f"{said}, but its len is 6" in error + output for _, output, error in outputs), outputs
    assert "make __len__ exact" in outputs[1][2]


def test_a_batch_sampler_that_ends_before_its_length_ends_all_processes_with_the_numbers(tmp_path):
    outputs = outputs_of(start_ranks(SCRIPT, tmp_path, "train", "short by sampler", "plain"))
    assert [code for code, _, _ in outputs] == [1, 1]
    said = "of process 1 ended after 1 batches in epoch 1, but its len is 4 (2 of them for this process)"
    assert all(said in error for _, _, error in outputs)


def test_a_loader_that_goes_past_its_length_is_cut_there_on_all_processes(tmp_path):
    processes = start_ranks(SCRIPT, tmp_path, "train", "long", "long")
    assert results_of(processes) == ["0 4 4", "1 4 4"]
    log = "".join(path.read_text() for path in tmp_path.glob("logs/train-*.log"))
    assert log.count("the training loader (Batches) has more batches than its len, 4") == 1
    assert log.count("the validation loader (Batches) has more batches than its len, 4") == 1


ALL = "each process reads all that its own"


@pytest.mark.parametrize(
    ("train", "val", "said"),
    [
        (
            "weighted",
            "weighted, built",
            [f"{ALL} WeightedRandomSampler yields", "the processes share what WeightedRandomSampler draws"],
        ),
        (
            "subclass",
            "marked",
            [
                f"{ALL} SequentialSampler yields",
                "Marked has an attribute 'rank', so it is taken to divide the data by itself",
            ],
        ),
        (
            "other lengths",
            "other data",
            [
                "the training loader (Batches) has different numbers of batches on the processes: 4, 5",
                "holds other data on each process (8, 10 batches before they are shared out)",
            ],
        ),
    ],
)
def test_data_that_is_not_shared_out_as_usual_is_said_once_with_who_reads_what(train, val, said, tmp_path):
    results_of(start_ranks(SCRIPT, tmp_path, "train", train, val))
    log = "".join(path.read_text() for path in tmp_path.glob("logs/train-*.log"))
    assert [log.count(text) for text in said] == [1, 1]
