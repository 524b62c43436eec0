"""The same script on one process and on two, started by torchrun on gloo."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parent / "ddp_script.py"


def run(folder, processes, count, steps, **settings):
    """Run the script and return each rank's result, in rank order."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    command = [sys.executable, *launcher, str(SCRIPT), str(folder), str(count), str(steps), json.dumps(settings)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line.partition("RESULT")[2] for line in done.stdout.splitlines() if "RESULT" in line]
    return sorted((json.loads(line) for line in lines), key=lambda result: result["rank"])


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
