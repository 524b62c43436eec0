"""Test the segmentation on rooms that it never saw: ``python examples/segmentation/test.py``."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from data import CLASSES, RoomDataset, pack
from metrics import class_iou, confusion
from model import SegmentationModel
from picture import draw_rooms

from vision3d_engine import BatchTester, Config, build_dataloader, load_config

CONFIG = Path(__file__).parent / "config.yaml"
SHOWN = 3


class SegmentationTester(BatchTester):
    """Segments batches of packed rooms, each evaluated by itself."""

    def __init__(self, cfg: Config, checkpoint: str = "best_crowded_miou.pth") -> None:
        super().__init__(cfg, checkpoint)
        test_set = RoomDataset(cfg.data.num_test, cfg.exp.seed + 99)
        self.register_loader(build_dataloader(test_set, cfg.data.batch_size, num_workers=0, collate_fn=pack))
        self.register_model(SegmentationModel(len(CLASSES)))
        self.rooms: list[tuple[Any, Any, Any]] = []

    def test_step(self, iteration: int, data_dict: Any) -> Any:
        """Segment a batch of rooms."""
        return {"logits": self.model(data_dict["points"], data_dict["lengths"])}

    def eval_step(self, iteration: int, data_dict: Any, output_dict: Any) -> dict[str, Any]:
        """Compare one room with the truth, and keep for the end which classes were taken for which."""
        table = confusion(output_dict["logits"], data_dict["labels"])
        self.add_records([table.cpu()])
        return {"accuracy": table.diag().sum() / table.sum()}

    def after_test_step(self, iteration: int, data_dict: Any, output_dict: Any, result_dict: Any) -> None:
        """Keep the first rooms for the picture."""
        if len(self.rooms) < SHOWN:
            predicted = output_dict["logits"].argmax(dim=1)
            room = (data_dict["points"], data_dict["labels"], predicted)
            self.rooms.append(tuple(each.cpu().numpy() for each in room))

    def after_test_epoch(self, summary_dict: dict[str, Any]) -> None:
        """Add the IoU of each class over all rooms, and draw; on the main process, which has the records."""
        if confusions := self.gather_records():
            iou = class_iou(confusions)
            summary_dict.update({f"iou_{name}": value for name, value in zip(CLASSES, iou.tolist(), strict=True)})
            summary_dict["miou"] = iou.nanmean().item()
            draw_rooms(Path(self.output_dir) / "segmentation.png", self.rooms, CLASSES, iou.tolist())


def main(argv: Sequence[str]) -> None:
    """Test the best checkpoint of the run folder, or the one of ``--checkpoint``, and draw segmentation.png."""
    torch.set_num_threads(1)
    SegmentationTester(load_config(CONFIG, argv)).run()


if __name__ == "__main__":
    main(sys.argv[1:])
