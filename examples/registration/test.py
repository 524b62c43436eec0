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
RIGHT_DEG, RIGHT_M = 10.0, 0.1
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
        self.recall = self.register_metric("pairs", RegistrationRecall(RIGHT_DEG, RIGHT_M))
        self.rounds = cfg.model.test_rounds

    def test_step(self, iteration: int, data_dict: Any) -> Any:
        """Estimate the motion of a pair, whose clouds fit into the unit sphere."""
        rotation, translation = self.model(data_dict["source"], data_dict["target"], self.rounds)[-1]
        return {"rotation": rotation, "translation": translation}

    def eval_step(self, iteration: int, data_dict: Any, output_dict: Any) -> dict[str, Any]:
        """Compare it with the true one, in degrees and metres, and keep both."""
        estimated, true = (in_metres(motion, data_dict["scale"]) for motion in (output_dict, data_dict))
        self.recall.update(estimated, true)
        self.save_result("transforms", {"estimated": estimated[0], "true": true[0]})
        unmoved = rotation_error_deg(torch.eye(4, device=true.device), true)
        rre, rte = rotation_error_deg(estimated, true), translation_error(estimated, true)
        registered = (rre < RIGHT_DEG) & (rte < RIGHT_M)
        return {"RRE_before": unmoved, "RRE": rre, "RTE": rte, "registered": registered.float()}

    def after_test_epoch(self, summary_dict: dict[str, Any]) -> None:
        """Draw typical and the worst pairs from what all attempts and processes of the test have left."""
        if is_master():
            rows = [json.loads(line) for line in Path(f"{self.results_dir}.jsonl").read_text().splitlines()]
            rows.sort(key=lambda row: row["values"]["RRE"])
            draw_pairs(self.results_dir / "typical.png", [self.drawn(row) for row in typical(rows)])
            draw_pairs(self.results_dir / "worst.png", [self.drawn(row) for row in rows[: -SHOWN - 1 : -1]])

    def drawn(self, row: dict[str, Any]) -> Pair:
        """Return the clouds of a row of the table, in its unit, with the source as it was moved."""
        pair, values = self.test_set[row["index"]], row["values"]
        with np.load(self.results_dir / "transforms" / f"{row['name']}.npz") as saved:
            estimated = torch.from_numpy(saved["estimated"])
        found = moved(pair["source"] * pair["scale"], estimated) / pair["scale"]
        clouds = (cloud.numpy() for cloud in (pair["source"], pair["target"], found))
        return Pair(*clouds, row["name"], values["RRE_before"], values["RRE"])


def in_metres(motion: Any, scale: Tensor) -> Tensor:
    """Return the transform ``(B, 4, 4)`` of a ``rotation`` and a ``translation``, given the metres of one unit."""
    rotation, translation = motion["rotation"], motion["translation"] * scale[:, None]
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
