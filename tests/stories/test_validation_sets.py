"""Several validation sets on one and on two processes, and what becomes of a run that ends inside of one."""

import json
import signal
from pathlib import Path

import pytest
import torch

from tests.patience import skip_if_ignored
from tests.stories.launching import outputs_of, start, start_ranks

SCRIPT = Path(__file__).with_name("sets_script.py")
COUNTS = {"easy": 5, "hard": 7, "tiny": 1}


def run(folder, processes, *words):
    """Run the script; return the exit code of the main process, what all say, and what each found, in rank order."""
    words = [SCRIPT, folder, *words]
    outputs = outputs_of(start_ranks(*words, size=processes) if processes > 1 else [start(*words)])
    text = "".join(output + errors for _, output, errors in outputs)
    texts = [line.partition("RESULT ")[2] for line in text.splitlines() if "RESULT" in line]
    found = sorted(map(json.loads, texts), key=lambda each: each["rank"])
    return outputs[0][0], text, found


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """What processes find that are not interrupted, by their number; each run is made once."""
    known = {}

    def found(processes):
        if processes not in known:
            code, text, known[processes] = run(tmp_path_factory.mktemp("straight") / "run", processes)
            assert code == 0, text
        return known[processes]

    return found


def check_resume(folder, processes, straight):
    """The resumed run validates epoch 2 anew and ends as the one that was not interrupted, to the same bits."""
    code, text, found = run(folder, processes, "--resume")
    assert code == 0, text
    assert "VALIDATES 2 easy 1" in text
    for one, whole in zip(found, straight(processes), strict=True):
        assert one["summaries"] == {epoch: whole["summaries"][epoch] for epoch in ("2", "3")}
        assert {**one, "summaries": None} == {**whole, "summaries": None}


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_that_is_killed_in_its_second_set_resumes_to_the_same_bits(processes, straight, tmp_path):
    code, text, found = run(tmp_path / "run", processes, "--at", "hard.2", "SIGKILL")
    assert code != 0
    assert found == []
    assert "VALIDATES 2 hard 1" in text
    check_resume(tmp_path / "run", processes, straight)


@pytest.mark.parametrize(
    ("place", "following"), [("easy.3", "hard.1"), pytest.param("hard.2", "hard.3", marks=pytest.mark.slow)]
)
def test_a_signal_in_a_set_stops_one_process_before_its_next_batch_also_of_the_next_set(
    place, following, straight, tmp_path
):
    skip_if_ignored(signal.SIGTERM)
    code, text, _ = run(tmp_path / "run", 1, "--at", place, "SIGTERM")
    assert code == 143, text
    assert f"VALIDATES 2 {place.replace('.', ' ')}\n" in text
    assert f"VALIDATES 2 {following.replace('.', ' ')}\n" not in text
    check_resume(tmp_path / "run", 1, straight)


@pytest.mark.parametrize("sharded", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_two_processes_find_in_each_set_what_one_finds(sharded, straight, tmp_path):
    """To summation order in float64 (1e-12), with the global batch unchanged; each sample counts once."""
    (one,), (first, second) = straight(1), run(tmp_path, 2, "--sharded")[2] if sharded else straight(2)
    assert first["summaries"] == second["summaries"]
    for epoch, summary in one["summaries"].items():
        assert (
            list(summary)
            == list(first["summaries"][epoch])
            == [f"{name}/{key}" for name in COUNTS for key in ("mae", "drawn")]
        )
        for name in COUNTS:
            assert abs(summary[f"{name}/mae"] - first["summaries"][epoch][f"{name}/mae"]) <= 1e-12
    assert first["best"] == one["best"]


def test_records_of_all_processes_stand_in_the_order_of_the_sets_and_their_samples(straight):
    every, *own = straight(2)[0]["records"]
    assert [[index for index, _ in records] for records in own] == [list(range(count)) for count in COUNTS.values()]
    assert every == [record for records in own for record in records]
    assert straight(2)[1]["records"] == [[]] * 4
    errors = torch.tensor([error for _, error in every], dtype=torch.float64)
    expected = torch.tensor([error for _, error in straight(1)[0]["records"][0]], dtype=torch.float64)
    assert torch.allclose(errors, expected, rtol=0, atol=1e-12)
    means = [chunk.mean().item() for chunk in errors.split(list(COUNTS.values()))]
    assert means == pytest.approx([straight(2)[0]["summaries"]["3"][f"{name}/mae"] for name in COUNTS], abs=1e-12)
