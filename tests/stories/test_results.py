"""A test that is killed again and again leaves the files and the table of one that never was."""

import json
import random
import re
from pathlib import Path

import pytest
import torch

from tests.stories.launching import outputs_of, start, start_ranks

SCRIPT = Path(__file__).with_name("results_script.py")
ROOT = Path(__file__).parents[2]
PATHS = {"PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    torch.manual_seed(0)
    torch.save(torch.nn.Linear(3, 2).state_dict(), folder / "weights.pth")
    assert ended(folder / "undisturbed", 0, size=1) == [0]
    return folder


def ended(folder, event, *words, size):
    """Run the script, each process to its end, or until one of them kills itself; return their exit codes."""
    words = (folder, event, *words)
    processes = [start(SCRIPT, *words, **PATHS)] if size == 1 else start_ranks(SCRIPT, *words, size=size, **PATHS)
    return [code for code, _, _ in outputs_of(processes)]


def left_by(folder):
    """The bytes of all that a test leaves for others, but for a mean of torchmetrics, a sum that is rounded."""
    files = {path.name: path.read_bytes() for path in folder.glob("results.*") if path.is_file()}
    files["results.json"], count = re.subn(rb'\n    "average": .*', b"", files["results.json"])
    assert count == 1
    kept = {f"{path.parent.name}/{path.name}": path.read_bytes() for path in folder.glob("results/[!.]*/*")}
    return files | kept


def kill_again_and_again(folder, kills, seed, sizes):
    rng = random.Random(seed)
    for number in range(kills):
        codes = ended(folder, rng.randrange(5, 25), "--resume", size=sizes[number % len(sizes)])
        assert -9 in codes, f"attempt {number + 1} was not killed"
    assert set(ended(folder, 0, "--resume", size=sizes[kills % len(sizes)])) == {0}
    assert len(list(folder.glob("results/.progress/*.jsonl"))) > 1


def assert_same(folder, other):
    found, expected = left_by(folder), left_by(other)
    assert found.keys() == expected.keys()
    assert len(found) == 203
    assert [name for name in found if found[name] != expected[name]] == []
    numbers, others = (json.loads((each / "results.json").read_text())["summary"] for each in (folder, other))
    assert numbers["average"] == pytest.approx(others["average"], rel=1e-12)
    assert 0 < numbers["seg/mIoU"] < 1
    assert 0 < numbers["pose/RR"] < 1
    assert 0 < numbers["pose/RRE"] < 90


def test_a_test_that_is_killed_ten_times_ends_with_the_same_files_and_table(undisturbed):
    folder, rng = undisturbed / "alone", random.Random(3)
    events = ",".join(str(rng.randrange(5, 38)) for _ in range(10))
    ((code, output, errors),) = outputs_of([start(SCRIPT, folder, f"{events},0", "--resume", **PATHS)])
    assert code == 0, errors
    assert output.split("\n").count("ATTEMPT -9") == 10
    assert_same(folder, undisturbed / "undisturbed")


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [[2], [2, 1, 3]], ids=["two processes", "changing numbers of processes"])
def test_a_test_on_several_processes_that_is_killed_ten_times_ends_with_the_files_and_table_of_one(undisturbed, sizes):
    folder = undisturbed / f"ten {len(sizes)} {sizes[0]}"
    kill_again_and_again(folder, 10, seed=2, sizes=sizes)
    assert_same(folder, undisturbed / "undisturbed")
