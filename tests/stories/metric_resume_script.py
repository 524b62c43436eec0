"""Trains and validates with a registered metric, and may kill itself: ``SCRIPT FOLDER [--at PHASE.ITERATION] ...``."""

import json
import os
import signal

import torch
from torchmetrics.classification import BinaryAveragePrecision

from tests.toys import Rows
from vision3d_engine import ConfusionMatrix, EpochBasedTrainer, build_dataloader, get_parser

get_parser().add_argument("folder")
get_parser().add_argument("--at", default="")
ARGS = get_parser().parse_args()


class Trainer(EpochBasedTrainer):
    def __init__(self):
        trainer = {"max_epoch": 2, "save_every": "1 iteration", "async_save": False}
        super().__init__({"exp": {"output_dir": ARGS.folder}, "trainer": trainer})
        size = 4 // int(os.environ.get("WORLD_SIZE", "1"))
        train = build_dataloader(Rows(20), size, shuffle=True, num_workers=0)
        self.register_loader(train, build_dataloader(Rows(7), size, num_workers=0))
        model = self.register_model(torch.nn.Linear(3, 1).double())
        self.register_optimizer(torch.optim.SGD(model.parameters(), lr=0.0))
        self.seg = self.register_metric("seg", ConfusionMatrix(3))
        self.ap = self.register_metric("ap", BinaryAveragePrecision())
        self.summaries = {"train": {}, "val": {}}

    def take_in(self, phase, epoch, iteration, data_dict):
        if (epoch, f"{phase}.{iteration}") == (2, ARGS.at):
            self.finish_saving()
            os.kill(os.getpid(), signal.SIGKILL)
        print(f"WALKS {epoch} {phase} {iteration}", flush=True)
        self.seg.update(data_dict["x"], (data_dict["y"] > 0).long())
        self.ap.update(data_dict["x"][:, 0].sigmoid(), (data_dict["y"] > 0).long())
        return {}, {"loss": (self.model(data_dict["x"])[:, 0] - data_dict["y"]).square().mean()}

    def train_step(self, epoch, iteration, data_dict):
        return self.take_in("train", epoch, iteration, data_dict)

    def val_step(self, epoch, iteration, data_dict):
        return self.take_in("val", epoch, iteration, data_dict)

    def after_train_epoch(self, epoch, summary_dict):
        self.summaries["train"][epoch] = dict(summary_dict)

    def after_val_epoch(self, epoch, summary_dict):
        self.summaries["val"][epoch] = dict(summary_dict)


if __name__ == "__main__":
    toy = Trainer()
    toy.save_best_model_on_metric("seg/mIoU")
    toy.run()
    print("RESULT", json.dumps(toy.summaries), flush=True)
