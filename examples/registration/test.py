"""Test the registration on a real scan that it never saw: ``python examples/registration/test.py``."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from data import scan_set
from model import RegistrationModel, rotation_error_deg
from picture import draw_pairs

from vision3d_engine import AverageMeter, Config, SingleTester, build_dataloader, load_config

CONFIG = Path(__file__).parent / "config.yaml"


class RegistrationTester(SingleTester):
    """Registers pairs of patches of the scan, one by one."""

    def __init__(self, cfg: Config, checkpoint: str = "best_rotation_deg.pth") -> None:
        super().__init__(cfg, checkpoint)
        data = cfg.data
        test_set = scan_set(data.num_test, data.num_points, data.max_angle_deg, cfg.exp.seed + 99)
        self.register_loader(build_dataloader(test_set, batch_size=1, num_workers=0))
        self.register_model(RegistrationModel(rounds=cfg.model.train_rounds))
        self.rounds = cfg.model.test_rounds
        self.before, self.after, self.shift = AverageMeter(), AverageMeter(), AverageMeter()
        self.shown: list[tuple[np.ndarray, np.ndarray, np.ndarray, float, float]] = []

    def test_step(self, iteration: int, data_dict: Any) -> Any:
        """Estimate the motion of a pair."""
        rotation, translation = self.model(data_dict["source"], data_dict["target"], self.rounds)[-1]
        return {"rotation": rotation, "translation": translation}

    def eval_step(self, iteration: int, data_dict: Any, output_dict: Any) -> dict[str, Any]:
        """Compare it with the true one: degrees, metres, and whether it is within 10 degrees."""
        rotation, error = data_dict["rotation"], output_dict["translation"] - data_dict["translation"]
        before = rotation_error_deg(torch.eye(3, device=rotation.device).expand_as(rotation), rotation)
        after = rotation_error_deg(output_dict["rotation"], rotation)
        shift = error.norm(dim=-1) * data_dict["scale"]
        return {"before_deg": before, "after_deg": after, "shift_m": shift, "within_10_deg": (after < 10).float()}

    def after_test_step(self, iteration: int, data_dict: Any, output_dict: Any, result_dict: Any) -> None:
        """Collect errors for the medians, and pairs for the picture."""
        self.before.update(result_dict["before_deg"])
        self.after.update(result_dict["after_deg"])
        self.shift.update(result_dict["shift_m"])
        if len(self.shown) < 4:
            source, target = data_dict["source"][0].cpu(), data_dict["target"][0].cpu()
            moved = source @ output_dict["rotation"][0].cpu().T + output_dict["translation"][0].cpu()
            errors = float(result_dict["before_deg"]), float(result_dict["after_deg"])
            self.shown.append((source.numpy(), target.numpy(), moved.numpy(), *errors))

    def after_test_epoch(self, summary_dict: dict[str, Any]) -> None:
        """Add the medians, which the published figures are."""
        summary_dict["median_before_deg"] = self.before.median()
        summary_dict["median_after_deg"] = self.after.median()
        summary_dict["median_shift_m"] = self.shift.median()
        draw_pairs(Path(self.output_dir) / "registration.png", self.shown)


def main(argv: Sequence[str]) -> None:
    """Test the best checkpoint of the run folder, or the one of ``--checkpoint``, and draw registration.png."""
    torch.set_num_threads(1)
    RegistrationTester(load_config(CONFIG, argv)).run()


if __name__ == "__main__":
    main(sys.argv[1:])
