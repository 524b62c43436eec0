"""The same script on one process and on two, on gloo."""

import json
from pathlib import Path

import pytest
import torch

from tests.stories.launching import results_of, start, start_ranks

SCRIPT = Path(__file__).parent / "ddp_script.py"


def run(folder, processes, count, steps, **settings):
    """Run the script and return each rank's result, in rank order."""
    words = [SCRIPT, folder, count, steps, json.dumps(settings)]
    found = results_of(start_ranks(*words, size=processes) if processes > 1 else [start(*words)])
    return sorted(map(json.loads, found), key=lambda result: result["rank"])


@pytest.mark.parametrize(("count", "steps"), [(7, 1), (12, 2)])
def test_two_processes_learn_what_one_learns_and_validate_every_sample_once(tmp_path, count, steps):
    """With the global batch unchanged the weights agree to summation order in float64 (1e-12)."""
    (one,) = run(tmp_path / "one", 1, count, steps)
    first, second = run(tmp_path / "two", 2, count, steps)
    assert first["weights"] == second["weights"]
    assert torch.allclose(torch.tensor(first["weights"][0]), torch.tensor(one["weights"][0]), atol=1e-12, rtol=0)
    assert sorted(first["seen"] + second["seen"]) == sorted(one["seen"]) == list(range(count))
    assert first["summary"] == second["summary"]
    assert {"only_rank_0", "only_rank_1"} <= first["summary"].keys()
    files = sorted(path.name for path in (tmp_path / "two" / "checkpoints").iterdir())
    assert files == ["best_mae.pth", "checkpoint.prev.pth", "checkpoint.pth", "epoch-1.pth", "epoch-2.pth"]
    state = torch.load(tmp_path / "two" / "checkpoints" / "checkpoint.pth", weights_only=True)
    assert state["model"].keys() == {"weight", "bias", "calls"}
