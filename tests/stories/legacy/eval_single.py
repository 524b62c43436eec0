"""A testing script, case by case, that writes features to disk and words its own log line."""

import os
import os.path as osp

import numpy as np

from common import Net, PointSet, collate, make_cfg
from vision3d_engine import SingleTester
from vision3d_engine.utils.dataloader import build_dataloader
from vision3d_engine.utils.io import dump_pickle, ensure_dir, load_pickle
from vision3d_engine.utils.misc import get_log_string
from vision3d_engine.utils.tensor import tensor_to_array


class Tester(SingleTester):
    def __init__(self, cfg):
        super().__init__(cfg)
        self.register_loader(build_dataloader(PointSet(6), batch_size=1, num_workers=0, collate_fn=collate))
        model = Net()
        self.register_model(model)
        self.output_dir = osp.join(cfg.exp.output_dir, "features")
        ensure_dir(self.output_dir)

    def test_step(self, iteration, data_dict):
        return self.model(data_dict)

    def eval_step(self, iteration, data_dict, output_dict):
        return {"accuracy": (output_dict["logits"].argmax(1) == data_dict["label"]).float().mean()}

    def get_log_string(self, iteration, data_dict, output_dict, result_dict):
        message = f"cloud {iteration}"
        message += ", " + get_log_string(result_dict=result_dict)
        message += ", nPoints: {}".format(data_dict["points"].shape[0])
        return message

    def after_test_step(self, iteration, data_dict, output_dict, result_dict):
        np.savez(osp.join(self.output_dir, f"{iteration}.npz"), **tensor_to_array(output_dict))

    def after_test_epoch(self, summary_dict):
        dump_pickle(dict(summary_dict), osp.join(self.output_dir, "summary.pkl"))


def main():
    cfg = make_cfg(os.getcwd())
    tester = Tester(cfg)
    tester.run()
    folder = osp.join(cfg.exp.output_dir, "features")
    print("tested", len(os.listdir(folder)) - 1, load_pickle(osp.join(folder, "summary.pkl")).keys())


if __name__ == "__main__":
    main()
