"""One of several processes that train, validate or test with loaders of many kinds; prints what each of them saw."""

import os
import sys

import torch
from torch.utils.data import DataLoader, Dataset, WeightedRandomSampler

from vision3d_engine import BatchTester, EpochBasedTrainer, build_dataloader

RANK = int(os.environ.get("RANK", "0"))


class Rows(Dataset):
    def __init__(self, count=8):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return {"x": torch.full((3,), index / 8), "index": index}


class Batches:
    """Batches of its own, fewer or more than it says."""

    def __init__(self, count, length):
        self.count, self.length = count, length

    def __len__(self):
        return self.length

    def __iter__(self):
        return iter(DataLoader(Rows(self.count), 1))


class Groups(Batches):
    """A batch sampler that is one batch short."""

    def __iter__(self):
        return iter([[i] for i in range(self.count)])


class Marked(WeightedRandomSampler):
    rank = "hard samples first"


class OwnLoader(DataLoader):
    pass


def built(count=8, **options):
    return build_dataloader(Rows(count), **{"batch_size": 1, "num_workers": 0, **options})


LOADERS = {
    "short": lambda: Batches(6 - 2 * RANK, 6),
    "long": lambda: Batches(6, 4),
    "short by sampler": lambda: built(batch_size=None, batch_sampler=Groups(3, 4)),
    "plain": built,
    "weighted": lambda: DataLoader(Rows(), 1, sampler=WeightedRandomSampler([1] * 8, 4)),
    "weighted, built": lambda: built(sampler=WeightedRandomSampler([1] * 8, 4)),
    "marked": lambda: built(sampler=Marked([1] * 8, 4)),
    "subclass": lambda: OwnLoader(Rows(), 1),
    "other lengths": lambda: Batches(4 + RANK, 4 + RANK),
    "other data": lambda: built(8 + 2 * RANK),
}


class Trainer(EpochBasedTrainer):
    def __init__(self, folder, train, val):
        super().__init__({"exp": {"output_dir": folder}, "trainer": {"max_epoch": 1, "overwrite": True}})
        self.register_loader(LOADERS[train](), LOADERS[val]())
        model = self.register_model(torch.nn.Linear(3, 1))
        self.register_optimizer(torch.optim.SGD(model.parameters(), lr=0.1))
        self.steps, self.val_steps = 0, 0

    def train_step(self, epoch, iteration, data_dict):
        self.steps += 1
        return {}, {"loss": self.model(data_dict["x"]).square().mean()}

    def val_step(self, epoch, iteration, data_dict):
        self.val_steps += 1
        return {}, {"size": self.model(data_dict["x"]).abs().mean()}


class Tester(BatchTester):
    def __init__(self, folder, kind):
        weights = f"{folder}/weights{RANK}.pth"
        torch.save(torch.nn.Linear(3, 1).state_dict(), weights)
        super().__init__({"exp": {"output_dir": folder}}, checkpoint=weights)
        self.register_loader(LOADERS[kind]())
        self.register_model(torch.nn.Linear(3, 1))
        self.steps, self.val_steps = 0, 0

    def test_step(self, iteration, data_dict):
        self.steps += 1
        return {"y": self.model(data_dict["x"])}

    def eval_step(self, iteration, data_dict, output_dict):
        return {"size": output_dict["y"].abs().mean()}


if __name__ == "__main__":
    folder, role, *kinds = sys.argv[1:]
    sys.argv[1:] = []
    engine = Trainer(folder, *kinds) if role == "train" else Tester(folder, *kinds)
    engine.run()
    print(f"RESULT {RANK} {engine.steps} {engine.val_steps}\n", end="", flush=True)
