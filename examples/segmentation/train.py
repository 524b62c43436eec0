"""Train the segmentation of generated rooms: ``python examples/segmentation/train.py``."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from data import CLASSES, RoomDataset, pack
from model import SegmentationModel
from torch.nn.functional import cross_entropy

from vision3d_engine import (
    Config,
    ConfusionMatrix,
    EpochBasedTrainer,
    build_dataloader,
    build_optimizer,
    build_scheduler,
    load_config,
)

CONFIG = Path(__file__).parent / "config.yaml"


class SegmentationTrainer(EpochBasedTrainer):
    """Learns the class of each point."""

    def __init__(self, cfg: Config) -> None:
        super().__init__(cfg)
        data, seed = cfg.data, cfg.exp.seed
        options = {"batch_size": data.batch_size, "num_workers": data.num_workers, "collate_fn": pack}
        train_set = RoomDataset(data.num_train, seed, augment=True)
        val_sets = {name: RoomDataset(data.num_val, seed + 1, filled) for name, filled in data.val_sets.items()}
        val_loaders = {name: build_dataloader(val_set, **options) for name, val_set in val_sets.items()}
        self.register_loader(build_dataloader(train_set, shuffle=True, **options), val_loaders)
        model = self.register_model(SegmentationModel(len(CLASSES)))
        optimizer = build_optimizer(model, cfg)
        self.register_optimizer(optimizer)
        self.register_scheduler(build_scheduler(optimizer, cfg))
        self.iou = self.register_metric("seg", ConfusionMatrix(len(CLASSES), names=CLASSES))
        self.save_best_model_on_metric("crowded/seg/mIoU")

    def train_step(self, epoch: int, iteration: int, data_dict: Any) -> tuple[Any, dict[str, Any]]:
        """Return the mean loss over the points of all rooms of the batch."""
        logits = self.model(data_dict["points"], data_dict["lengths"])
        return {"logits": logits}, {"loss": cross_entropy(logits, data_dict["labels"])}

    def loss_weight(self, data_dict: Any, output_dict: Any, result_dict: Any) -> int:
        """Return the number of points: gradients and losses of several batches are then means over points too."""
        return len(data_dict["points"])

    metric_weight = loss_weight

    def val_step(self, epoch: int, iteration: int, data_dict: Any) -> tuple[Any, dict[str, Any]]:
        """Return the loss, and count which classes were taken for which."""
        output_dict, result_dict = self.train_step(epoch, iteration, data_dict)
        self.iou.update(output_dict["logits"], data_dict["labels"])
        return output_dict, result_dict


def main(argv: Sequence[str]) -> None:
    """Train with the settings of config.yaml; any can be overridden: ``--trainer.max_epoch 8``."""
    torch.set_num_threads(1)
    SegmentationTrainer(load_config(CONFIG, argv)).run()


if __name__ == "__main__":
    main(sys.argv[1:])
