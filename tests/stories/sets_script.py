"""A script with several validation sets, which can end or be told to stop inside of a validation.

``sets_script.py FOLDER [--at SET.ITERATION SIGNAL] [--resume] [--sharded]``: in the validation of epoch 2 each process
sends itself the signal. At the end each says its weights, its summaries and the records of the last validation.
"""

import json
import os
import signal

import torch
from torch.utils.data import Dataset

from vision3d_engine import EpochBasedTrainer, build_dataloader, get_parser

get_parser().add_argument("folder")
get_parser().add_argument("--sharded", action="store_true")
get_parser().add_argument("--at", nargs=2, default=("", "SIGKILL"))
ARGS = get_parser().parse_args()
# Batches of unequal numbers on two processes, of which one has none of the last set.
COUNTS = {"easy": 5, "hard": 7, "tiny": 1}


class Rows(Dataset):
    """Row i is a function of i, but for its noise."""

    def __init__(self, count):
        generator = torch.Generator().manual_seed(3)
        self.x = torch.randn(16, 3, generator=generator, dtype=torch.float64)[:count]

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return {"x": self.x[index], "y": self.x[index].sum().sin(), "index": index, "noise": torch.randn(())}


class Trainer(EpochBasedTrainer):
    def __init__(self):
        ways = {"parallel": "fsdp2", "fsdp_min_params": 1} if ARGS.sharded else {}
        super().__init__({"exp": {"output_dir": ARGS.folder}, "trainer": {"max_epoch": 3, **ways}})
        size = 8 // int(os.environ.get("WORLD_SIZE", "1"))
        train = build_dataloader(Rows(16), size, shuffle=True, num_workers=0)
        sets = {name: build_dataloader(Rows(count), 2, num_workers=0) for name, count in COUNTS.items()}
        self.register_loader(train, sets)
        model = self.register_model(torch.nn.Linear(3, 1).double())
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(0.1)
        self.register_optimizer(torch.optim.SGD(model.parameters(), lr=0.1))
        self.save_best_model_on_metric("hard/mae", largest=False)
        self.summaries, self.records = {}, {}

    def train_step(self, epoch, iteration, data_dict):
        return {}, {"loss": (self.model(data_dict["x"])[:, 0] - data_dict["y"]).square().mean()}

    def val_step(self, epoch, iteration, data_dict):
        if epoch == 2 and f"{self.val_name}.{iteration}" == ARGS.at[0]:
            os.kill(os.getpid(), getattr(signal, ARGS.at[1]))
        print(f"VALIDATES {epoch} {self.val_name} {iteration}", flush=True)
        error = (self.model(data_dict["x"])[:, 0] - data_dict["y"]).abs()
        self.add_records(zip(data_dict["index"].tolist(), error.tolist(), strict=True))
        return {}, {"mae": error.mean(), "drawn": torch.rand(()) + data_dict["noise"].mean()}

    def after_val_epoch(self, epoch, summary_dict):
        self.summaries[epoch] = dict(summary_dict)
        self.records = {name: self.gather_records(name) for name in (None, *COUNTS)}


def main():
    trainer = Trainer()
    trainer.run()
    found = {
        "rank": int(os.environ.get("RANK", "0")),
        "weights": [] if ARGS.sharded else [parameter.tolist() for parameter in trainer.model.parameters()],
        "summaries": trainer.summaries,
        "records": list(trainer.records.values()),
        "best": torch.load(f"{trainer.output_dir}/checkpoints/best_hard_mae.pth", weights_only=True)["metadata"],
    }
    print(f"RESULT {json.dumps(found)}", flush=True)


if __name__ == "__main__":
    main()
