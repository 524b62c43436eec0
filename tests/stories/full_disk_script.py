"""A run whose disk is full from the end of epoch 1 on, or until epoch 3 begins; what it ends with is said as JSON.

Files of more than 20 kB cannot be written then, which the system says as it says that a disk is full.
"""

import json
import resource
import sys

import torch

from tests.toys import ToyEpochTrainer, settings
from vision3d_engine.core.errors import EngineError

folder, async_save, heals = sys.argv[1], sys.argv[2] == "async", sys.argv[3] == "heals"
_, HARD = resource.getrlimit(resource.RLIMIT_FSIZE)


def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, HARD))


class Wide(ToyEpochTrainer):
    """Has 60 kB of weights, and is best in epoch 2."""

    def _register(self, *args):
        super()._register(*args)
        self.model.register_buffer("table", torch.zeros(15_000))
        self.save_best_model_on_metric("score")

    def before_train_epoch(self, epoch):
        if epoch == 2:
            self.finish_saving()
            limit(20_000)
        if epoch == 3 and heals:
            try:
                self.finish_saving()
            except EngineError as error:
                self.log(f"waited: {error}")
            limit(HARD)

    def after_val_epoch(self, epoch, summary_dict):
        summary_dict["score"] = (0.5, 0.9, 0.8, 0.4)[epoch - 1]


sys.argv[1:] = []
toy = Wide(settings(folder, max_epoch=4, async_save=async_save))
try:
    toy.run()
    ended = "well"
except EngineError as error:
    ended = f"{type(error).__name__}: {error}"
best = toy._run.checkpoints.state_dict()["best_scores"]["score"]["score"]
print(json.dumps({"ended": ended, "epoch": toy.epoch, "best": best}))
