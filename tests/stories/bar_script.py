"""Runs that take about a second each, one after the other, on whatever standard error is; told apart by their names."""

import sys
import time
import traceback
from pathlib import Path

from tests.toys import ToyEpochTrainer, ToySingleTester, rows_loader, save_weights, settings


class Slow(ToyEpochTrainer):
    fails = False

    def train_step(self, epoch, iteration, data_dict):
        time.sleep(0.02)
        if self.fails and iteration == 20:
            raise ValueError("boom")
        return super().train_step(epoch, iteration, data_dict)

    def val_step(self, epoch, iteration, data_dict):
        time.sleep(0.02)
        return super().val_step(epoch, iteration, data_dict)


class SlowTester(ToySingleTester):
    def test_step(self, iteration, data_dict):
        time.sleep(0.02)
        return super().test_step(iteration, data_dict)

    def get_log_string(self, iteration, data_dict, output_dict, result_dict):
        return f"case {iteration} has {result_dict['mae']:.2f}"


def run(folder, case):
    options = {"log_steps": 10, "progress_bar": case != "off"}
    if case == "test":
        save_weights(folder)
        SlowTester(settings(folder, **options), rows_loader(40, batch_size=1)).run()
        return
    toy = Slow(settings(folder, max_epoch=2, **options), rows_loader(40, batch_size=1), rows_loader(40, batch_size=1))
    toy.fails = case == "fails"
    toy.run()


def main(folder, *cases):
    for case in cases:
        print(f"=== {case}", file=sys.stderr, flush=True)
        try:
            run(Path(folder) / case, case)
        except ValueError:
            traceback.print_exc()


if __name__ == "__main__":
    folder, *cases = sys.argv[1:]
    del sys.argv[1:]
    main(folder, *cases)
