"""Trains on nine samples; of two processes one has a batch less than the other. Also dies in the fifth step."""

import os
import sys

from tests.toys import Rows, ToyEpochTrainer, rows_loader
from tests.toys import settings as options_of
from vision3d_engine import build_dataloader


class Counted(ToyEpochTrainer):
    kill_at = 0

    def after_train_step(self, epoch, iteration, data_dict, output_dict, result_dict):
        if self.total_steps == self.kill_at:
            self.finish_saving()
            os._exit(9)


def made(folder, batch_size, kill_at=0, **trainer):
    options = {"max_epoch": 2, "log_steps": 1, "save_every": "1 iterations", "async_save": False, **trainer}
    loader = build_dataloader(Rows(9), batch_size, num_workers=0, shuffle=True)
    toy = Counted(options_of(folder, **options), loader, rows_loader(4))
    toy.kill_at = kill_at
    return toy


if __name__ == "__main__":
    folder, kill_at = sys.argv[1], int(sys.argv[2])
    del sys.argv[1:]
    toy = made(folder, 2, kill_at, resume=not kill_at)
    toy.run()
    print(f"RESULT {toy.samples} {toy.updates}")
