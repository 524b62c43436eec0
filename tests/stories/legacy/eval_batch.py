"""A testing script with packed batches and a split of its own, started with --test_epoch."""

import os

import torch

from common import Net, PointSet, collate, make_cfg
from vision3d_engine import BatchTester
from vision3d_engine.utils.dataloader import build_dataloader


class Tester(BatchTester):
    def __init__(self, cfg):
        super().__init__(cfg)
        self.register_loader(build_dataloader(PointSet(10), batch_size=4, num_workers=0, collate_fn=collate))
        self.register_model(Net())
        self.cases = []

    def test_step(self, iteration, data_dict):
        return self.model(data_dict)

    def split_batch_dict(self, iteration, data_dict, output_dict):
        points = torch.split(data_dict["points"], data_dict["lengths"].tolist())
        data_dicts = [{"points": p, "label": label} for p, label in zip(points, data_dict["label"])]
        return data_dicts, [{"logits": logits} for logits in output_dict["logits"]]

    def eval_step(self, iteration, data_dict, output_dict):
        assert data_dict["points"].shape[0] < 30
        return {"accuracy": (output_dict["logits"].argmax() == data_dict["label"]).float()}

    def after_test_step(self, iteration, data_dict, output_dict, result_dict):
        self.cases.append(iteration)


def main():
    tester = Tester(make_cfg(os.getcwd()))
    tester.run()
    print("cases", tester.cases)


if __name__ == "__main__":
    main()
