"""What two processes tell of their parameters is what one tells that has both their batches."""

import json
from pathlib import Path

import pytest

from tests.stories.statistics_server import Trainer
from tests.stories.test_worlds import World

SERVER = Path(__file__).parent / "statistics_server.py"
KINDS = ("grad_norm", "weight_norm", "update_ratio", "dead_units")


@pytest.fixture(scope="module")
def world():
    world = World(2, SERVER)
    yield world
    world.close()


def numbers_of(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {(row["phase"], row["step"]): row["values"] for row in rows if row["phase"] in KINDS}


def warnings_of(folder):
    text = next((folder / "logs").glob("train-*.log")).read_text()
    return [line for line in text.splitlines() if "has not changed" in line]


@pytest.mark.parametrize(
    "trainer",
    [
        {"parallel": "ddp", "find_unused_parameters": True},
        {"parallel": "ddp", "find_unused_parameters": True, "grad_acc_steps": 2},
        {"parallel": "ddp", "turns": True},
        {"parallel": "fsdp2", "fsdp_min_params": 1},
        {"parallel": "fsdp2", "fsdp_min_params": 1, "grad_acc_steps": 2},
    ],
    ids=["ddp", "ddp with windows", "ddp with turns", "fsdp2", "fsdp2 with windows"],
)
def test_statistics_and_unchanged_parameters_are_those_of_one_process_with_both_batches(world, tmp_path, trainer):
    for found in world.run(folder=str(tmp_path / "two"), **trainer):
        assert found.get("error") is None
    window, turns = trainer.get("grad_acc_steps", 1), trainer.get("turns", False)
    if turns:  # a second network sees the first one's update, so only a batch of twice the size is the same
        Trainer(str(tmp_path / "one"), turns=True, batch_size=8).run()
    else:
        Trainer(str(tmp_path / "one"), grad_acc_steps=2 * window, log_steps=4).run()
    two, one = numbers_of(tmp_path / "two"), numbers_of(tmp_path / "one")
    assert len(two) == len(one) > 0
    for (kind, step), values in two.items():
        assert values == pytest.approx(one[kind, step if turns else 2 * step], rel=1e-6), (kind, step)
    assert two["dead_units", 2]["first"] == pytest.approx(3 / 7)
    (said,) = warnings_of(tmp_path / "two") or [""]
    assert ("2 without a gradient" in said and "unused.weight, unused.bias." in said) is not turns
