"""A process of a world whose loaders have an odd number of batches, or a length that changes; runs case by case."""

import contextlib

import torch
from torch.utils.data import DataLoader, Dataset

from tests.stories.serving import serve
from tests.stories.world_server import Rows, linear
from vision3d_engine import EpochBasedTrainer, IterBasedTrainer, build_dataloader


class BrokenOffError(Exception):
    """What ends a run early."""


class Samples(Dataset):
    """Rows whose number can change from epoch to epoch."""

    def __init__(self, count, lengths):
        self.rows, self.count, self.lengths = Rows(200), count, lengths

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return self.rows[index]


class Growing(Samples):
    def set_epoch(self, epoch):
        self.count = self.lengths[min(epoch, len(self.lengths)) - 1]


def loader(case, data):
    if case["loader"] == "build_dataloader":
        return build_dataloader(data, 2, num_workers=0, shuffle=case.get("shuffle", False))
    plain = DataLoader(data, 2, shuffle=case.get("shuffle", False))
    return list(plain) if case["loader"] == "list" else plain


class Steps:
    """Writes down what it sees; ``case["change"]`` says who changes the length of the data."""

    def __init__(self, case):
        trainer = {"max_epoch": 1, "log_steps": 100, **case.get("trainer", {})}
        super().__init__({"exp": {"output_dir": case["folder"]}, "trainer": trainer})
        self.case, self.seen, self.lengths = case, [], case.get("lengths", [])
        make = Growing if case.get("change") == "set_epoch" else Samples
        self.data = make(case.get("count", 1), self.lengths)
        self.register_loader(loader(case, self.data), build_dataloader(Samples(3, []), 2, num_workers=0))
        model = self.register_model(linear())
        self.register_optimizer(torch.optim.SGD(model.parameters(), lr=0.1))

    def before_train_epoch(self, epoch):
        if self.case.get("change") == "hook":
            self.data.count = self.lengths[epoch - 1]
        if self.case.get("change") == "exchange":
            self.train_loader = loader(self.case, Samples(self.lengths[epoch - 1], []))

    def before_train_step(self, epoch, iteration, data_dict):
        if len(self.seen) == self.case.get("break_after"):
            raise BrokenOffError

    def train_step(self, epoch, iteration, data_dict):
        self.seen.append((epoch, iteration, data_dict["index"].tolist()))
        error = self.model(data_dict["x"])[:, 0] - data_dict["y"]
        return {}, {"loss": error.square().mean()}

    def val_step(self, epoch, iteration, data_dict):
        return {}, {"mae": (self.model(data_dict["x"])[:, 0] - data_dict["y"]).abs().mean()}


class Epoch(Steps, EpochBasedTrainer):
    pass


class Iter(Steps, IterBasedTrainer):
    pass


def run(case):
    trainer = {"epoch": Epoch, "iter": Iter}[case["kind"]](case)
    with contextlib.suppress(BrokenOffError):
        trainer.run()
    return {"seen": trainer.seen, "weights": [parameter.tolist() for parameter in trainer.model.parameters()]}


if __name__ == "__main__":
    serve(run)
