"""Checkpoints that an older engine has left in mid-epoch resume to the bits of the run that was not stopped."""

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.checkpoint.old.train import run
from tests.stories.launching import results_of, start_ranks

OLD = Path(__file__).parent / "old"


def copied(kind, tmp_path):
    return Path(shutil.copytree(OLD / kind, tmp_path / kind, ignore=shutil.ignore_patterns("expected.json")))


def check(kind, resumed, straight):
    """Bit for bit where this machine computes the bits of the one that wrote the files, and to 1e-9 on any."""
    expected = json.loads((OLD / kind / "expected.json").read_text())
    assert resumed["numbers"] == pytest.approx(expected["numbers"], rel=1e-9, abs=1e-12)
    assert (resumed["lr"], resumed["averaged"]) == (expected["lr"], expected["averaged"])
    assert [row["values"].keys() for row in resumed["rows"]] == [row["values"].keys() for row in expected["rows"]]
    if straight["digest"] != expected["digest"]:
        return
    assert resumed["digest"] == expected["digest"]
    assert resumed["rows"] == expected["rows"]
    assert len(resumed["losses"]) == len(expected["losses"]) // 2
    assert resumed["losses"].items() <= expected["losses"].items()
    for name, summary in resumed["summaries"].items():
        assert summary.items() >= expected["summaries"][name].items()


def test_a_run_of_one_process_goes_on_from_mid_epoch(tmp_path):
    check("one", run("one", copied("one", tmp_path), resume=True), run("one", tmp_path / "straight"))


@pytest.mark.parametrize("kind", ["ranks", "shards"])
def test_a_run_of_two_processes_goes_on_from_mid_epoch(kind, tmp_path):
    folder, straight = copied(kind, tmp_path), tmp_path / "straight"
    words = ["-m", "tests.checkpoint.old.train", kind, folder, "--resume", "--straight", straight]
    path = os.pathsep.join([str(OLD.parent.parent.parent), os.environ.get("PYTHONPATH", "")])
    results_of(start_ranks(*words, PYTHONPATH=path))
    found = [[json.loads((each / f"found-{rank}.json").read_text()) for rank in (0, 1)] for each in (folder, straight)]
    check(kind, found[0][0], found[1][0])
    assert found[0][1]["digest"] == found[0][0]["digest"]
