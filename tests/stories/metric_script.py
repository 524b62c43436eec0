"""Validates with a confusion matrix for each batch, gathered from all processes as the documentation says."""

import json
import sys

from tests.toys import ToyEpochTrainer, rows_loader, settings
from vision3d_engine.metrics.confusion_matrix import ConfusionMatrix


class Measured(ToyEpochTrainer):
    def val_step(self, epoch, iteration, data_dict):
        batch = ConfusionMatrix(3)
        batch.update(data_dict["x"], (data_dict["y"] > 0).long())  # the inputs pass for logits
        self.add_records([batch])
        return super().val_step(epoch, iteration, data_dict)

    def after_val_epoch(self, epoch, summary_dict):
        if batches := self.gather_records():
            total = ConfusionMatrix(3)
            total.merge_state(batches)
            summary_dict |= total.compute()
        self.summary = {name: value for name, value in summary_dict.items() if name != "mae"}


def measure(folder, count):
    toy = Measured(settings(folder), val_loader=rows_loader(count))
    toy.run()
    return toy.summary


if __name__ == "__main__":
    folder, count = sys.argv[1], int(sys.argv[2])
    del sys.argv[1:]
    print("RESULT", json.dumps(measure(folder, count)))
