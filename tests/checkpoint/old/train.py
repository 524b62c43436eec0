"""Runs that were stopped in mid-epoch and left the folders beside this file: on one process, on two, and in shards.

    python -m tests.checkpoint.old.train one FOLDER --kill_at 13
    torchrun --nproc-per-node=2 -m tests.checkpoint.old.train ranks FOLDER --kill_at 13
    torchrun --nproc-per-node=2 -m tests.checkpoint.old.train shards FOLDER --kill_at 7

Without ``--kill_at`` a run goes to its end and writes what it has found into ``FOLDER/found-RANK.json``; with
``--resume`` it goes on. A folder's ``expected.json`` holds what the main process of the uninterrupted run found with
the code that left the folder. Of a run's folder only the numbers and the checkpoints that a resume reads are kept.
"""

import hashlib
import json
import os
import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import Dataset

from vision3d_engine import EpochBasedTrainer, IterBasedTrainer, build_dataloader, get_parser

RANK = int(os.environ.get("RANK", "0"))


class Noisy(Dataset):
    """Sample i is a function of i and of the random numbers at its place."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        x = torch.linspace(-1, 1, 4, dtype=torch.float64) * (index + 1) / self.count
        return {"x": x + 0.1 * torch.randn(4, dtype=torch.float64), "y": x.sin().sum()}


class Average:
    """An exponential moving average of the weights, as a user may register it."""

    def __init__(self, model):
        self.model, self.steps = model, 0
        self.weights = {name: each.detach().clone() for name, each in model.named_parameters()}

    @torch.no_grad()
    def update(self):
        self.steps += 1
        for name, parameter in self.model.named_parameters():
            self.weights[name].lerp_(parameter, 0.1)

    def state_dict(self):
        return {"steps": self.steps, "weights": dict(self.weights)}

    def load_state_dict(self, state):
        self.steps = state["steps"]
        for name, value in state["weights"].items():
            self.weights[name].copy_(value)


class Steps:
    def build_net(self):
        return nn.Sequential(nn.Linear(4, 8, bias=False), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 1, bias=False))

    def register(self, kill_at):
        self.kill_at, self.losses, self.summaries = kill_at, {}, {}
        train = build_dataloader(Noisy(self.train_samples), batch_size=3, num_workers=0, shuffle=True)
        self.register_loader(train, build_dataloader(Noisy(7), batch_size=2, num_workers=0))
        torch.manual_seed(3)
        self.net = self.build_net().double()
        model = self.register_model(self.net)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        self.register_optimizer(optimizer)
        self.register_scheduler(torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9))
        self.average = self.register_state("average", Average(self.net))
        self.save_best_model_on_metric("error", largest=False)

    def train_step(self, epoch, iteration, data_dict):
        error = self.model(data_dict["x"])[:, 0] - data_dict["y"]
        return {}, {"loss": error.square().mean(), "error": error.detach().abs().mean()}

    def optimizer_step(self):
        super().optimizer_step()
        self.average.update()

    def after_train_step(self, epoch, iteration, data_dict, output_dict, result_dict):
        self.losses[self.total_steps] = result_dict["loss"].item()
        if self.total_steps == self.kill_at:
            os._exit(9)

    def val_step(self, epoch, iteration, data_dict):
        return {}, {"error": (self.model(data_dict["x"])[:, 0] - data_dict["y"]).abs().mean()}

    def after_train_epoch(self, epoch, summary_dict):
        self.summaries[f"train {epoch}"] = dict(summary_dict)

    def after_val_epoch(self, epoch, summary_dict):
        self.summaries[f"val {epoch}"] = dict(summary_dict)


class One(Steps, EpochBasedTrainer):
    train_samples = 23  # 8 batches

    def build_net(self):
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 1))


class Ranks(Steps, IterBasedTrainer):
    train_samples = 48  # 8 batches on each of 2


class Shards(Steps, EpochBasedTrainer):
    train_samples = 20  # 4 batches on one, 3 on the other


SETTINGS = {
    "one": {"save_every": "4 iterations"},
    "ranks": {"save_every": "4 iterations", "num_iters_per_epoch": 8},
    "shards": {"save_every": "2 iterations", "parallel": "fsdp2", "fsdp_min_params": 8},
}


def run(kind, folder, kill_at=None, resume=False):
    """Run to the end, or to where the process dies, and return what was found."""
    trainer = {"max_epoch": 3, "grad_acc_steps": 2, "log_steps": 2, "fused_optimizer": False, "resume": resume}
    trainer |= {"async_save": False, **SETTINGS[kind]}
    cfg = {"exp": {"output_dir": str(folder), "seed": 11}, "trainer": trainer}
    toy = {"one": One, "ranks": Ranks, "shards": Shards}[kind](cfg)
    toy.register(kill_at)
    toy.run()
    found = {"losses": toy.losses, "summaries": toy.summaries, "lr": toy.get_lr(), "averaged": toy.average.steps}
    found |= weights_of(toy)
    found["rows"] = [without_time(row) for row in rows_of(folder)] if RANK == 0 else []
    return json.loads(json.dumps(found))


def weights_of(toy):
    """Return a digest of weights, average and Adam's moments, and the weights as numbers."""
    nests = [toy.net.state_dict(), toy.average.weights, *toy.optimizer.state_dict()["state"].values()]
    tensors = [whole(value).double().flatten() for nest in nests for value in nest.values()]
    numbers = torch.cat(tensors)
    return {"digest": hashlib.sha256(numbers.numpy().tobytes()).hexdigest(), "numbers": numbers.tolist()}


def whole(tensor):
    tensor = tensor.detach()
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def rows_of(folder):
    return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


def without_time(row):
    """Leave out of a row of numbers what differs from run to run."""
    return {key: row[key] for key in ("phase", "epoch", "iteration", "step") if key in row} | {"values": row["values"]}


def main():
    parser = get_parser()
    parser.add_argument("kind")
    parser.add_argument("folder")
    parser.add_argument("--kill_at", type=int)
    parser.add_argument("--straight", help="run from the beginning in this folder too")
    options = parser.parse_known_args()[0]
    found = run(options.kind, options.folder, options.kill_at, resume="--resume" in sys.argv)
    (Path(options.folder) / f"found-{RANK}.json").write_text(json.dumps(found))
    if options.straight:
        sys.argv.remove("--resume")
        found = run(options.kind, options.straight)
        (Path(options.straight) / f"found-{RANK}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
