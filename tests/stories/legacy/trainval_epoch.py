"""An epoch-based training script with the usual parts, a loss object and an evaluator on self."""

import os
import time

import torch

from common import Net, PointSet, collate, make_cfg
from vision3d_engine import EpochBasedTrainer
from vision3d_engine.utils.dataloader import build_dataloader
from vision3d_engine.utils.optimizer import build_optimizer, build_scheduler
from vision3d_engine.utils.parser import get_parser
from vision3d_engine.utils.profiling import profile_cpu_runtime


class Trainer(EpochBasedTrainer):
    def __init__(self, cfg):
        self.cfg = cfg
        super().__init__(cfg)
        self.output_dir = cfg.exp.output_dir
        self.log_dir = "./logs"
        self.loss = torch.nn.CrossEntropyLoss()
        self.metrics = {"anything": 1}
        self._max_epoch = 1000

        start_time = time.time()
        with profile_cpu_runtime("Data loader created"):
            train_loader = build_dataloader(PointSet(), batch_size=4, num_workers=0, shuffle=True, collate_fn=collate)
            val_loader = build_dataloader(PointSet(8), batch_size=4, num_workers=0, collate_fn=collate)
        self.log("Data loader created: {:.3f}s collapsed.".format(time.time() - start_time), level="DEBUG")
        self.register_loader(train_loader, val_loader)

        model = Net().to(self.device)
        model = self.register_model(model)
        optimizer = build_optimizer(model, cfg)
        self.register_optimizer(optimizer)
        scheduler = build_scheduler(optimizer, cfg)
        self.register_scheduler(scheduler)
        self.save_best_model_on_metric("accuracy")
        self.save_best_model_on_metric("val_loss", largest=False)

    def train_step(self, epoch, iteration, data_dict):
        output_dict = self.model(data_dict)
        loss = self.loss(output_dict["logits"], data_dict["label"])
        accuracy = (output_dict["logits"].argmax(1) == data_dict["label"]).float().mean()
        return output_dict, {"loss": loss, "accuracy": accuracy}

    def val_step(self, epoch, iteration, data_dict):
        output_dict, result_dict = self.train_step(epoch, iteration, data_dict)
        return output_dict, {"val_loss": result_dict["loss"], "accuracy": result_dict["accuracy"].item()}

    def after_backward(self, epoch, iteration, data_dict, output_dict, result_dict):
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)


def main():
    cfg = make_cfg(os.getcwd())
    trainer = Trainer(cfg)
    trainer.run()
    print("finished epoch", trainer.epoch, "steps", trainer.total_steps, "resume", trainer.args.resume)


if __name__ == "__main__":
    main()
