"""An iteration-based training script with a flag of its own and metrics of the whole validation set."""

import os

import numpy as np
import torch

from common import Net, PointSet, collate, make_cfg
from vision3d_engine import IterBasedTrainer
from vision3d_engine.utils.average_meter import AverageMeter
from vision3d_engine.utils.dataloader import build_dataloader
from vision3d_engine.utils.optimizer import build_optimizer, build_scheduler
from vision3d_engine.utils.parser import get_parser
from vision3d_engine.utils.summary_board import SummaryBoard
from vision3d_engine.utils.tensor import tensor_to_array


def inject_parser():
    parser = get_parser()
    parser.add_argument("--test_area", default="Area_5", help="test area")


class Trainer(IterBasedTrainer):
    def __init__(self, cfg):
        inject_parser()
        super().__init__(cfg)
        self.log("Area: " + self.args.test_area)
        train_loader = build_dataloader(PointSet(), batch_size=4, num_workers=1, shuffle=True, collate_fn=collate)
        val_loader = build_dataloader(PointSet(8), batch_size=1, num_workers=0, shuffle=False, collate_fn=collate)
        self.register_loader(train_loader, val_loader)
        model = self.register_model(Net())
        optimizer = build_optimizer(model, cfg)
        self.register_optimizer(optimizer)
        self.register_scheduler(build_scheduler(optimizer, cfg))
        self.save_best_model_on_metric("mAcc")
        self.loss_func = torch.nn.CrossEntropyLoss()
        self.meter = None

    def train_step(self, epoch, iteration, data_dict):
        output_dict = self.model(data_dict)
        loss_dict = {"loss": self.loss_func(output_dict["logits"], data_dict["label"])}
        loss_dict.update({"points": len(data_dict["points"])})
        return output_dict, loss_dict

    def before_val_epoch(self, epoch):
        self.meter = SummaryBoard(["0", "1"])
        self.timer = AverageMeter()

    def val_step(self, epoch, iteration, data_dict):
        output_dict = self.model(data_dict)
        right = tensor_to_array(output_dict["logits"].argmax(1) == data_dict["label"])
        self.meter.update(str(int(data_dict["label"])), float(right))
        return output_dict, {"right": np.float32(right)}

    def after_val_epoch(self, epoch, summary_dict):
        mean_accuracy = np.mean(list(self.meter.summary().values()))
        self.log(f"MeanAcc: {mean_accuracy:.3f}", level="SUCCESS")
        summary_dict["mAcc"] = mean_accuracy


def main():
    cfg = make_cfg(os.getcwd())
    trainer = Trainer(cfg)
    trainer.run()
    print("finished epoch", trainer.epoch, "area", trainer.args.test_area, "lr", round(trainer.get_lr(), 6))


if __name__ == "__main__":
    main()
