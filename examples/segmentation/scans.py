"""Test the segmentation on dense scans, piece by piece: ``python examples/segmentation/scans.py``.

What it says of each scan lies in ``results-scans/prediction/scan-0.ply`` and so on, coloured by class, for any viewer
of PLY files, and the truth beside it.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from data import CLASSES, make_room
from model import SegmentationModel
from torch.utils.data import DataLoader, Dataset

from vision3d_engine import Config, ConfusionMatrix, SceneTester, label_colors, load_config
from vision3d_engine.data.fragments import take_points, voxel_picks
from vision3d_engine.data.votes import flipped

CONFIG = Path(__file__).parent / "config.yaml"
VOXEL_M = 0.15  # leaves a room about as many points as the rooms of the training have


class ScanDataset(Dataset):
    """Rooms with many more points than those of the training."""

    def __init__(self, num_scans: int, num_points: int, seed: int) -> None:
        self._num_scans, self._num_points, self._seed = num_scans, num_points, seed

    def __len__(self) -> int:
        return self._num_scans

    def __getitem__(self, index: int) -> dict[str, Any]:
        scan = make_room(self._num_points, 0.5, np.random.default_rng((self._seed, index)))
        scan["points"][:, :2] -= scan["points"][:, :2].mean(dim=0)
        return {"name": f"scan-{index}", **scan}


class ScanTester(SceneTester):
    """Segments thinned scans, each point in one of them at least, and judges whole scans."""

    fragment_batch_points = 32_768
    vote = "softmax"
    test_name = "scans"
    worst_by = ("accuracy", "smallest")

    def __init__(self, cfg: Config, checkpoint: str = "best_crowded_seg_mIoU.pth") -> None:
        super().__init__(cfg, checkpoint)
        scans = ScanDataset(cfg.data.num_scans, cfg.data.scan_points, cfg.exp.seed + 199)
        self.register_loader(DataLoader(scans, batch_size=None))
        self.register_model(SegmentationModel(len(CLASSES)))
        self.iou = self.register_metric("seg", ConfusionMatrix(len(CLASSES), names=CLASSES))

    def split_scene(self, iteration: int, data_dict: Any) -> Iterator[dict[str, Any]]:
        """Yield thinned scans, in the random order of the points on which the network relies."""
        for index in voxel_picks(data_dict["points"], VOXEL_M):
            yield take_points(data_dict, index.sort().values)

    def augmentations(self) -> list[Callable[[dict[str, Any]], dict[str, Any]]]:
        """Return a mirror, for a second vote of each thinned scan."""
        return [flipped(0)]

    def test_step(self, iteration: int, data_dict: Any) -> Any:
        """Segment a batch of thinned scans."""
        return {"logits": self.model(data_dict["points"], data_dict["lengths"])}

    def eval_step(self, iteration: int, data_dict: Any, output_dict: Any) -> dict[str, Any]:
        """Compare one scan with the truth, and count which classes were taken for which."""
        labels, prediction = data_dict["labels"], output_dict["prediction"]
        self.iou.update(prediction, labels)
        for name, classes in (("prediction", prediction), ("truth", labels)):
            cloud = {"points": data_dict["points"], "colors": label_colors(classes), "label": classes}
            self.save_result(name, cloud, format="ply")
        return {"accuracy": (prediction == labels).float().mean()}


def main(argv: Sequence[str]) -> None:
    """Test the best checkpoint of the run folder, or the one of ``--checkpoint``."""
    torch.set_num_threads(1)
    ScanTester(load_config(CONFIG, argv)).run()


if __name__ == "__main__":
    main(sys.argv[1:])
