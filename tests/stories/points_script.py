"""Trains on batches by number of points: ``points_script.py FOLDER MAX_UPDATES [--resume] ...``; says which samples."""

import os

import torch
from torch.utils.data import Dataset

from vision3d_engine import EpochBasedTrainer, IterBasedTrainer, build_dataloader, collate_packed, get_parser

get_parser().add_argument("folder")
get_parser().add_argument("max_updates", type=int)
get_parser().add_argument("--batch_points", type=int, default=100)
get_parser().add_argument("--accumulate", type=int, default=1)
get_parser().add_argument("--endless", action="store_true")
get_parser().add_argument("--iterations", type=int)
ARGS = get_parser().parse_args()
RANK = int(os.environ.get("RANK", "0"))


class Clouds(Dataset):
    def __init__(self):
        self.lengths = [1 + (7 * index) % 41 for index in range(40)]

    def __len__(self):
        return len(self.lengths)

    def __getitem__(self, index):
        return {"points": torch.randn(self.lengths[index], 3), "index": index}


class Trainer(IterBasedTrainer if ARGS.endless else EpochBasedTrainer):
    def __init__(self):
        settings = {"max_epoch": None, "max_updates": ARGS.max_updates, "val_every": "never"}
        settings["grad_acc_steps"] = ARGS.accumulate
        settings |= {"num_iters_per_epoch": ARGS.iterations} if ARGS.iterations else {}
        super().__init__({"exp": {"output_dir": ARGS.folder}, "trainer": settings})
        options = {"batch_points": ARGS.batch_points, "shuffle": True, "num_workers": 1, "collate_fn": collate_packed}
        self.register_loader(build_dataloader(Clouds(), 8, **options))
        model = self.register_model(torch.nn.Linear(3, 1))
        self.register_optimizer(torch.optim.SGD(model.parameters(), lr=0.01))

    def train_step(self, epoch, iteration, data_dict):
        clouds = data_dict["points"].split(data_dict["lengths"])
        drawn = " ".join(f"{cloud[0, 0].item():.6f}" for cloud in clouds)
        number = (iteration - 1) * int(os.environ.get("WORLD_SIZE", "1")) + RANK
        print(f"RESULT {epoch} {number:03d} {data_dict['index'].tolist()} {drawn}", flush=True)
        return {}, {"loss": self.model(data_dict["points"]).square().mean()}


Trainer().run()
