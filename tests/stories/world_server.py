"""A process of a world: runs the cases that a test sends, and sends back what came out."""

import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from torch.utils.data import Dataset

from tests.stories.serving import serve
from vision3d_engine import EpochBasedTrainer, IterBasedTrainer, SingleTester, build_dataloader


class Rows(Dataset):
    """Row i is a function of i; float64."""

    def __init__(self, count):
        generator = torch.Generator().manual_seed(3)
        self.x = torch.randn(200, 3, generator=generator, dtype=torch.float64)[:count]

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return {"x": self.x[index], "y": self.x[index].sum().sin(), "index": index}


def linear():
    model = torch.nn.Linear(3, 1).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.1)
    return model


class Steps:
    def __init__(self, folder, case):
        trainer = {"max_epoch": 1, "grad_acc_steps": 1, "log_steps": 2, **case.get("trainer", {})}
        super().__init__({"exp": {"output_dir": folder}, "trainer": trainer})
        self.case, self.updates, self.seen, self.val_seen = case, [], [], []
        train = build_dataloader(Rows(case["count"]), case.get("batch_size", 2), num_workers=0)
        val = build_dataloader(Rows(case.get("val_count", 3)), case.get("val_batch_size", 2), num_workers=0)
        self.register_loader(train, val)
        model = self.register_model(linear())
        self.register_optimizer(torch.optim.SGD(model.parameters(), lr=0.1))

    def train_step(self, epoch, iteration, data_dict):
        error = self.model(data_dict["x"])[:, 0] - data_dict["y"]
        return {}, {"loss": error.square().mean(), f"only_{dist.get_rank()}": 1.0}

    def after_train_step(self, epoch, iteration, data_dict, output_dict, result_dict):
        self.seen.append(data_dict["index"].tolist())

    def optimizer_step(self):
        self.updates.append(torch.cat([p.grad.flatten() for p in self.model.parameters()]).tolist())
        super().optimizer_step()

    def val_step(self, epoch, iteration, data_dict):
        error = (self.model(data_dict["x"])[:, 0] - data_dict["y"]).abs()
        self.add_records(list(zip(data_dict["index"].tolist(), error.tolist(), strict=True)))
        return {}, {"mae": error.mean(), "python": float(len(error))}

    def after_val_epoch(self, epoch, summary_dict):
        self.summary, self.records = dict(summary_dict), self.gather_records()


class Weighted:
    def loss_weight(self, data_dict, output_dict, result_dict):
        return len(data_dict["y"])


class Epoch(Steps, EpochBasedTrainer):
    pass


class Iter(Steps, IterBasedTrainer):
    pass


class WeightedEpoch(Weighted, Epoch):
    pass


class WeightedIter(Weighted, Iter):
    pass


class Tester(SingleTester):
    def __init__(self, folder, case):
        torch.save(linear().state_dict(), Path(folder) / f"weights{dist.get_rank()}.pth")
        super().__init__(
            {"exp": {"output_dir": folder}}, checkpoint=str(Path(folder) / f"weights{dist.get_rank()}.pth")
        )
        self.register_loader(build_dataloader(Rows(case["count"]), 1, num_workers=0))
        self.register_model(linear())

    def test_step(self, iteration, data_dict):
        return {"error": (self.model(data_dict["x"])[:, 0] - data_dict["y"]).abs()}

    def eval_step(self, iteration, data_dict, output_dict):
        self.add_records(data_dict["index"].tolist())
        return {"mae": output_dict["error"].mean()}

    def after_test_epoch(self, summary_dict):
        self.summary, self.records = dict(summary_dict), self.gather_records()


KINDS = {"epoch": Epoch, "iter": Iter, "weighted epoch": WeightedEpoch, "weighted iter": WeightedIter, "test": Tester}


def run(case):
    with tempfile.TemporaryDirectory() as folder:
        engine = KINDS[case["kind"]](folder, case)
        engine.run()
        names = ("updates", "seen", "summary", "records")
        found = {name: getattr(engine, name) for name in names if hasattr(engine, name)}
        return found | {"weights": [parameter.tolist() for parameter in engine.model.parameters()]}


if __name__ == "__main__":
    serve(run)
