"""Test the registration on a real scan that it never saw: ``python examples/registration/test.py``."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from data import TEST_SETS
from model import RegistrationModel
from picture import Pair, draw_pairs
from torch import Tensor

from vision3d_engine import Config, RegistrationRecall, SingleTester, build_dataloader, load_config
from vision3d_engine.distributed.processes import is_master
from vision3d_engine.metrics.registration import moved, rotation_error_deg, translation_error

CONFIG = Path(__file__).parent / "config.yaml"
RIGHT_DEG, RIGHT_SHIFT = 10.0, 0.2  # lengths are in the unit of a pair, the radius of its patch
SHOWN = 4


class RegistrationTester(SingleTester):
    """Registers pairs of patches, one by one; each test set leaves tables, transforms and pictures of its own."""

    worst_by = ("RRE", "largest")

    def __init__(self, cfg: Config, checkpoint: str = "best_rotation_deg.pth") -> None:
        super().__init__(cfg, checkpoint)
        data = cfg.data
        self.test_name = data.test_set
        make_set = TEST_SETS[data.test_set]
        self.test_set = make_set(data.num_test, data.num_points, data.max_angle_deg, cfg.exp.seed + 99)
        self.register_loader(build_dataloader(self.test_set, batch_size=1, num_workers=0))
        self.register_model(RegistrationModel(rounds=cfg.model.train_rounds))
        self.recall = self.register_metric("pairs", RegistrationRecall(RIGHT_DEG, RIGHT_SHIFT))
        self.rounds = cfg.model.test_rounds

    def test_step(self, iteration: int, data_dict: Any) -> Any:
        """Estimate the motion of a pair."""
        rotation, translation = self.model(data_dict["source"], data_dict["target"], self.rounds)[-1]
        return {"rotation": rotation, "translation": translation}

    def eval_step(self, iteration: int, data_dict: Any, output_dict: Any) -> dict[str, Any]:
        """Compare it with the true one, and keep both."""
        estimated, true = as_transform(output_dict), as_transform(data_dict)
        self.recall.update(estimated, true)
        kept = {"estimated": estimated[0], "true": true[0], "metres_of_unit": data_dict["scale"][0]}
        self.save_result("transforms", kept)
        unmoved = rotation_error_deg(torch.eye(4, device=true.device), true)
        rre, rte = rotation_error_deg(estimated, true), translation_error(estimated, true)
        registered = (rre < RIGHT_DEG) & (rte < RIGHT_SHIFT)
        return {"RRE_before": unmoved, "RRE": rre, "RTE": rte, "registered": registered.float()}

    def after_test_epoch(self, summary_dict: dict[str, Any]) -> None:
        """Draw typical and the worst pairs from what all attempts and processes of the test have left."""
        if is_master():
            rows = [json.loads(line) for line in Path(f"{self.results_dir}.jsonl").read_text().splitlines()]
            rows.sort(key=lambda row: row["values"]["RRE"])
            draw_pairs(self.results_dir / "typical.png", "Typical pairs", [self.drawn(row) for row in typical(rows)])
            worst = [self.drawn(row) for row in rows[: -SHOWN - 1 : -1]]
            draw_pairs(self.results_dir / "worst.png", "The worst pairs", worst)

    def drawn(self, row: dict[str, Any]) -> Pair:
        """Return the clouds of the pair of a row of the table, and what became of the source."""
        pair, values = self.test_set[row["index"]], row["values"]
        with np.load(self.results_dir / "transforms" / f"{row['name']}.npz") as saved:
            motions = [torch.from_numpy(saved[name]) for name in ("estimated", "true")]
        found, truth = (moved(pair["source"], motion) for motion in motions)
        source, target, found, truth = (cloud.numpy() for cloud in (pair["source"], pair["target"], found, truth))
        return Pair(source, target, found, truth, row["name"], values["RRE_before"], values["RRE"])


def as_transform(motion: Any) -> Tensor:
    """Return a ``rotation`` ``(B, 3, 3)`` and a ``translation`` ``(B, 3)`` as one matrix ``(B, 4, 4)``."""
    rotation, translation = motion["rotation"], motion["translation"]
    transform = torch.eye(4, device=rotation.device).repeat(len(rotation), 1, 1)
    transform[:, :3] = torch.cat([rotation, translation[:, :, None]], dim=2)
    return transform


def typical(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a few of the rows in their order, of pairs that are turned by more than 15 degrees if there are any."""
    turned = [row for row in rows if row["values"]["RRE_before"] > 15] or rows
    return [turned[(2 * number + 1) * len(turned) // (2 * SHOWN)] for number in range(SHOWN)]


def main(argv: Sequence[str]) -> None:
    """Test the best checkpoint of the run folder, or the one of ``--checkpoint``, and draw pairs."""
    torch.set_num_threads(1)
    RegistrationTester(load_config(CONFIG, argv)).run()


if __name__ == "__main__":
    main(sys.argv[1:])
