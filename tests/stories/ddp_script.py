"""A training script that torchrun starts on several processes; prints what each of them ends with."""

import json
import sys

import torch
from torch.utils.data import Dataset

from vision3d_engine import EpochBasedTrainer, build_dataloader


class Rows(Dataset):
    def __init__(self, count):
        generator = torch.Generator().manual_seed(3)
        self.x = torch.randn(64, 3, generator=generator, dtype=torch.float64)[:count]

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return {"x": self.x[index], "y": self.x[index].sum(), "index": index}


class Trainer(EpochBasedTrainer):
    def __init__(self, folder, count, steps, further):
        trainer = {"max_epoch": 2, "grad_acc_steps": steps, "log_steps": 1, **further}
        super().__init__({"exp": {"output_dir": folder}, "trainer": trainer})
        world = self._session.world
        train = build_dataloader(Rows(24), batch_size=4 // world.size, num_workers=0)
        self.register_loader(train, build_dataloader(Rows(count), batch_size=3, num_workers=0))
        model = torch.nn.Linear(3, 1).double()
        model.register_buffer("calls", torch.zeros(()))  # DistributedDataParallel exchanges buffers in forward passes
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(0.1)
        model = self.register_model(model)
        self.register_optimizer(torch.optim.SGD(model.parameters(), lr=0.05))
        self.save_best_model_on_metric("mae", largest=False)
        self.seen = []

    def train_step(self, epoch, iteration, data_dict):
        error = self.model(data_dict["x"])[:, 0] - data_dict["y"]
        return {}, {"loss": error.square().mean()}

    def before_val_epoch(self, epoch):
        self.seen = []

    def val_step(self, epoch, iteration, data_dict):
        self.seen += data_dict["index"].tolist()
        error = self.model(data_dict["x"])[:, 0] - data_dict["y"]
        result = {f"only_rank_{self._session.world.rank}": 1.0}
        return {}, {"mae": error.abs().mean(), **result}

    def after_val_epoch(self, epoch, summary_dict):
        self.summary = dict(summary_dict)


trainer = Trainer(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4]))
rank = trainer._session.world.rank
trainer.run()
keys = [key for key, _ in trainer.model.named_parameters()]
weights = [parameter.tolist() for parameter in trainer.model.parameters()]
print(
    "RESULT "
    + json.dumps({"rank": rank, "weights": weights, "seen": trainer.seen, "summary": trainer.summary, "keys": keys})
)
