"""A trainer as the loop of Ray's TorchTrainer, with a worker that dies; against one process that accumulates two."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.stories.ray_script import Trainer

HAS_RAY = importlib.util.find_spec("ray") is not None
DRIVER = """
import sys
from pathlib import Path
import ray
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from tests.stories.ray_script import train

folder = Path(sys.argv[1])
ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100_000_000, log_to_driver=False)
result = TorchTrainer(
    train,
    train_loop_config={"folder": str(folder / "run")},
    scaling_config=ScalingConfig(num_workers=2),
    run_config=RunConfig(
        name="story",
        storage_path=str(folder / "ray"),
        failure_config=FailureConfig(max_failures=1),
        checkpoint_config=CheckpointConfig(num_to_keep=1),
    ),
).fit()
with result.checkpoint.as_directory() as kept:
    (folder / "kept.pth").write_bytes((Path(kept) / "checkpoint.pth").read_bytes())
import json
(folder / "metrics.json").write_text(json.dumps(result.metrics))
ray.shutdown()
"""


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.skipif(not HAS_RAY, reason="Ray is not installed: pip install -c constraints.txt 'ray[train]'")
def test_a_run_under_ray_whose_worker_dies_ends_as_one_that_was_left_alone(tmp_path):
    """To summation order in float64: two workers train as one process that accumulates two."""
    alone = Trainer(tmp_path / "alone", 2)
    alone.run()
    path = os.pathsep.join([str(Path(__file__).parent.parent.parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, "-c", DRIVER, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "has died").exists()
    kept = torch.load(tmp_path / "kept.pth", weights_only=True)
    assert kept["metadata"] == {"epoch": 3, "total_steps": 12, "updates": 12, "samples": 48}
    for name, value in alone.model.state_dict().items():
        assert (kept["model"][name] - value).abs().max() <= 1e-12
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    line = json.loads((tmp_path / "alone" / "metrics.jsonl").read_text().splitlines()[-1])
    assert (metrics["epoch"], metrics["total_steps"]) == (3, 12)
    assert metrics["mae"] == pytest.approx(line["values"]["mae"], abs=1e-12)
    assert [(tmp_path / "run" / f"group{rank}").read_text() for rank in (0, 1)] == ["True", "True"]
