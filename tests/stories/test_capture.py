"""What is captured on two processes is what hooks made by hand see on one, to the last bit."""

import json
from pathlib import Path

import pytest

from tests.stories.test_worlds import World
from vision3d_engine.demo.network import ShapeClassifier

SERVER = Path(__file__).parent / "capture_server.py"
MODULES = len(list(ShapeClassifier().modules())) - 1


@pytest.fixture(scope="module")
def world():
    world = World(2, SERVER)
    yield world
    world.close()


@pytest.mark.parametrize("kind", ["plain", "checkpointed"])
@pytest.mark.parametrize(
    "trainer",
    [
        {"parallel": "ddp"},
        {"parallel": "ddp", "grad_acc_steps": 3},
        {"parallel": "fsdp2", "fsdp_min_params": 1},
        {"parallel": "fsdp2", "fsdp_min_params": 1, "grad_acc_steps": 3},
    ],
    ids=["ddp", "ddp with windows", "fsdp2", "fsdp2 with windows"],
)
def test_captured_tensors_and_gradients_are_those_of_hooks_made_by_hand(world, tmp_path, kind, trainer):
    for found in world.run(folder=str(tmp_path), kind=kind, every=2, **trainer):
        assert found.get("error") is None
        assert found["different"] == []
        assert found["steps"] == [2, 4]
        assert found["equal"] == 2 * MODULES
        assert found["runs"] in (None, 10), "each of five steps runs it twice"
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["phase"] == "endpoints"] == [2, 4], "from the main process alone"
