"""Test the registration on a real scan that it never saw: ``python examples/registration/test.py``."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from data import scan_set
from model import RegistrationModel, apply_motion
from picture import draw_pairs

from vision3d_engine import AverageMeter, Config, SingleTester, build_dataloader, load_config
from vision3d_engine.metrics.registration import rotation_error_deg

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
        self.pairs: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def test_step(self, iteration: int, data_dict: Any) -> Any:
        """Estimate the motion of a pair."""
        rotation, translation = self.model(data_dict["source"], data_dict["target"], self.rounds)[-1]
        return {"rotation": rotation, "translation": translation}

    def eval_step(self, iteration: int, data_dict: Any, output_dict: Any) -> dict[str, Any]:
        """Compare it with the true one: degrees, metres, and whether it is within 10 degrees."""
        rotation, error = data_dict["rotation"], output_dict["translation"] - data_dict["translation"]
        before = rotation_error_deg(torch.eye(3, device=rotation.device), rotation)
        after = rotation_error_deg(output_dict["rotation"], rotation)
        shift = error.norm(dim=-1) * data_dict["scale"]
        return {"before_deg": before, "after_deg": after, "shift_m": shift, "within_10_deg": (after < 10).float()}

    def after_test_step(self, iteration: int, data_dict: Any, output_dict: Any, result_dict: Any) -> None:
        """Collect errors for the medians, and pairs for the picture."""
        self.before.update(result_dict["before_deg"])
        self.after.update(result_dict["after_deg"])
        self.shift.update(result_dict["shift_m"])
        moved = apply_motion(data_dict["source"], output_dict["rotation"], output_dict["translation"])
        source, target, moved = (cloud[0].cpu().numpy() for cloud in (data_dict["source"], data_dict["target"], moved))
        self.pairs.append((source, target, moved))

    def after_test_epoch(self, summary_dict: dict[str, Any]) -> None:
        """Add the medians, which the published figures are, and draw typical pairs."""
        before, after = self.before.get_records(), self.after.get_records()
        summary_dict["median_before_deg"] = self.before.median()
        summary_dict["median_after_deg"] = self.after.median()
        summary_dict["median_shift_m"] = self.shift.median()
        shown = typical_pairs(before, after)
        pairs = [(*self.pairs[i], float(before[i]), float(after[i])) for i in shown]
        draw_pairs(Path(self.output_dir) / "registration.png", pairs)


def typical_pairs(before: np.ndarray, after: np.ndarray) -> list[int]:
    """Return the indices of four pairs: of those turned by more than 15 degrees, from well to badly registered."""
    turned = np.flatnonzero(before > min(15.0, before.max() - 1e-3))
    ranked = turned[np.argsort(after[turned])]
    return [int(ranked[int(share * (len(ranked) - 1))]) for share in (0.2, 0.4, 0.6, 0.8)]


def main(argv: Sequence[str]) -> None:
    """Test the best checkpoint of the run folder, or the one of ``--checkpoint``, and draw registration.png."""
    torch.set_num_threads(1)
    RegistrationTester(load_config(CONFIG, argv)).run()


if __name__ == "__main__":
    main(sys.argv[1:])
