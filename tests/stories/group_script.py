"""A training whose whole process group gets a signal; ``group_script.py FOLDER OPTIONS`` with OPTIONS in JSON.

workers, step_s; context: how workers start; persistent; init: a worker_init_fn of its own; plain: torch's DataLoader;
stuck: the sample from which on loading takes for ever; early: workers, or their server, are started before the run;
trainer: settings.
At the end prints ``RESULT`` and the weights.
"""

import json
import multiprocessing
import sys
import time

import torch
from torch.utils.data import DataLoader, Dataset

from vision3d_engine import EpochBasedTrainer, build_dataloader


class Rows(Dataset):
    def __init__(self, stuck):
        self.stuck = stuck

    def __len__(self):
        return 400

    def __getitem__(self, index):
        while index >= self.stuck:
            time.sleep(1)
        return {"x": torch.full((3,), index / 400) + 0.1 * torch.randn(3)}


def note_worker(worker_id):
    print(f"WORKER {worker_id}\n", end="", flush=True)


class Trainer(EpochBasedTrainer):
    def __init__(self, folder, options):
        settings = {"max_epoch": 3, "log_steps": 50} | options.get("trainer", {})
        super().__init__({"exp": {"output_dir": folder}, "trainer": settings})
        self.step_s = options.get("step_s", 0.01)
        count = options.get("workers", 0)
        loading = {"num_workers": count, "worker_init_fn": note_worker if options.get("init") else None}
        if count:
            loading |= {"multiprocessing_context": options.get("context", "fork")}
            loading |= {"persistent_workers": options.get("persistent", False)}
        rows = Rows(options.get("stuck", 1000))
        make = DataLoader if options.get("plain") else build_dataloader
        train = make(rows, 2, **loading)
        if options.get("early"):
            next(iter(train))
        self.register_loader(train, build_dataloader(Rows(1000), 50, num_workers=min(count, 1)))
        model = torch.nn.Linear(3, 1)
        torch.nn.init.constant_(model.weight, 0.1)
        model = self.register_model(model)
        self.register_optimizer(torch.optim.SGD(model.parameters(), lr=0.01))

    def train_step(self, epoch, iteration, data_dict):
        time.sleep(self.step_s)
        return {}, {"loss": self.model(data_dict["x"]).square().mean()}

    def after_train_step(self, epoch, iteration, data_dict, output_dict, result_dict):
        print(f"STEP {self.total_steps}\n", end="", flush=True)  # in one piece, also where nothing is buffered

    def val_step(self, epoch, iteration, data_dict):
        print("VALIDATES\n", end="", flush=True)
        time.sleep(self.step_s)
        return {}, {"error": self.model(data_dict["x"]).abs().mean()}


if __name__ == "__main__":
    folder, options = sys.argv[1], json.loads(sys.argv[2])
    if options.get("context") == "forkserver" and options.get("early"):
        process = multiprocessing.get_context("forkserver").Process(target=print)
        process.start()
        process.join()
    trainer = Trainer(folder, options)
    trainer.run()
    print("RESULT", *(each.flatten().tolist() for each in trainer.model.parameters()))
