"""Test the segmentation on rooms that it never saw: ``python examples/segmentation/test.py``."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from data import CLASSES, RoomDataset, pack
from model import SegmentationModel
from picture import draw_rooms

from vision3d_engine import BatchTester, Config, ConfusionMatrix, build_dataloader, load_config
from vision3d_engine.distributed.processes import is_master

CONFIG = Path(__file__).parent / "config.yaml"
SHOWN = 3


class SegmentationTester(BatchTester):
    """Segments batches of packed rooms, each evaluated by itself."""

    def __init__(self, cfg: Config, checkpoint: str = "best_crowded_seg_mIoU.pth") -> None:
        super().__init__(cfg, checkpoint)
        test_set = RoomDataset(cfg.data.num_test, cfg.exp.seed + 99)
        self.register_loader(build_dataloader(test_set, cfg.data.batch_size, num_workers=0, collate_fn=pack))
        self.register_model(SegmentationModel(len(CLASSES)))
        self.iou = self.register_metric("seg", ConfusionMatrix(len(CLASSES), names=CLASSES))
        self.rooms: list[tuple[Any, Any, Any]] = []

    def test_step(self, iteration: int, data_dict: Any) -> Any:
        """Segment a batch of rooms."""
        return {"logits": self.model(data_dict["points"], data_dict["lengths"])}

    def eval_step(self, iteration: int, data_dict: Any, output_dict: Any) -> dict[str, Any]:
        """Compare one room with the truth, and count which classes were taken for which."""
        logits, labels = output_dict["logits"], data_dict["labels"]
        self.iou.update(logits, labels)
        return {"accuracy": (logits.argmax(dim=1) == labels).float().mean()}

    def after_test_step(self, iteration: int, data_dict: Any, output_dict: Any, result_dict: Any) -> None:
        """Keep the first rooms for the picture."""
        if len(self.rooms) < SHOWN:
            predicted = output_dict["logits"].argmax(dim=1)
            room = (data_dict["points"], data_dict["labels"], predicted)
            self.rooms.append(tuple(each.cpu().numpy() for each in room))

    def after_test_epoch(self, summary_dict: dict[str, Any]) -> None:
        """Draw rooms of the main process, with the IoU of each class over all rooms."""
        if is_master():
            iou = [summary_dict[f"seg/IoU/{name}"] for name in CLASSES]
            draw_rooms(Path(self.output_dir) / "segmentation.png", self.rooms, CLASSES, iou)


def main(argv: Sequence[str]) -> None:
    """Test the best checkpoint of the run folder, or the one of ``--checkpoint``, and draw segmentation.png."""
    torch.set_num_threads(1)
    SegmentationTester(load_config(CONFIG, argv)).run()


if __name__ == "__main__":
    main(sys.argv[1:])
