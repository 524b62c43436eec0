"""What a captured step costs: all modules of the demo's network in no step, in every one, and with a log line.

    python benchmarks/endpoints.py [--steps 200] [--rounds 5]

The same work in one process, in turn, for several rounds; figures are medians over rounds. One thread.
"""

import argparse
import statistics
import sys
import tempfile
import time

import torch
from torch import nn

from vision3d_engine import EpochBasedTrainer
from vision3d_engine.demo.network import ShapeClassifier

# A pattern that no step is due for, and one for all.
CASES = {
    "no capture": {},
    "capture, not due": {"every": 10**9},
    "captured": {"every": 1},
    "captured, log line": {"every": 1, "log_steps": 1},
    "no capture, log line": {"log_steps": 1},
}


class Trainer(EpochBasedTrainer):
    def __init__(self, folder, steps, every=None, log_steps=10**9):
        trainer = {"max_epoch": 1, "val_every": "never", "log_steps": log_steps, "progress_bar": False}
        super().__init__({"exp": {"output_dir": folder}, "trainer": trainer})
        torch.manual_seed(0)
        batch = {"points": torch.randn(8, 64, 3), "label": torch.arange(8)}
        self.register_loader([batch] * steps)
        model = self.register_model(ShapeClassifier())
        self.register_optimizer(torch.optim.SGD(model.parameters(), lr=0.01))
        if every is not None:
            self.capture("*", every)

    def train_step(self, epoch, iteration, data_dict):
        if iteration == 1:
            self.began = time.perf_counter()
        return {}, {"loss": nn.functional.cross_entropy(self.model(data_dict["points"]), data_dict["label"])}


def us_a_step(steps, **case):
    """Time all steps but what comes before the first."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(folder, steps, **case)
        trainer.after_train_epoch = lambda *_args: ended.append(time.perf_counter())
        ended = []
        trainer.run()
        return (ended[0] - trainer.began) / steps * 1e6


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    sys.argv = sys.argv[:1]  # the trainers read the command line, too
    torch.set_num_threads(1)
    times = {name: [] for name in CASES}
    for _ in range(options.rounds):
        for name, case in CASES.items():
            times[name].append(us_a_step(options.steps, **case))
    print(f"{len(list(ShapeClassifier().modules())) - 1} modules captured")
    for name, each in times.items():
        print(f"{name:22} {statistics.median(each):9.0f} us a step")


if __name__ == "__main__":
    main()
