"""A process of a world in which some processes leave batches out; also the loop by hand on one."""

import os

import torch
from torch import nn

from tests.stories.serving import serve
from tests.toys import FailingBackward, Rows
from vision3d_engine import EpochBasedTrainer, SkipBatch, build_dataloader

RANK, SIZE = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
OOM = "CUDA out of memory. Tried to allocate 20.00 GiB"


class Numbered(Rows):
    is_single = False

    def __getitem__(self, index):
        sample = super().__getitem__(index)
        if self.is_single:
            sample = {key: value.float() for key, value in sample.items()}
        return sample | {"number": index}


class FromTheEnd(nn.Module):
    """Layers that are listed from the last one on, in float32, as many that sums of three numbers round otherwise."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(37, 1), nn.Tanh(), nn.Linear(29, 37), nn.Tanh(), nn.Linear(3, 29)])

    def __getitem__(self, which):
        layers = list(self.layers)[::-1][which]
        return nn.Sequential(*layers) if isinstance(which, slice) else layers

    def forward(self, x):
        return self[:](x)


def new_model(kind=None):
    torch.manual_seed(3)
    if kind == "from the end":
        return FromTheEnd()
    middle = nn.BatchNorm1d(4) if kind == "norm" else nn.Tanh()
    return nn.Sequential(nn.Linear(3, 4), middle, nn.Linear(4, 1)).double()


def loss_of(model, batch):
    return (model(batch["x"])[:, 0] - batch["y"]).square().mean()


def flat(model):
    return torch.cat([each.detach().flatten() for each in model.parameters()])


class Trainer(EpochBasedTrainer):
    def __init__(self, case):
        trainer = {"max_epoch": 2, "log_steps": 2, "max_skipped": 0.9, "fused_optimizer": False, **case["trainer"]}
        super().__init__({"exp": {"output_dir": case["folder"]}, "trainer": trainer})
        Numbered.is_single = case.get("model") == "from the end"
        loader = build_dataloader(Numbered(case["count"]), 2, num_workers=0)
        self.register_loader(loader, build_dataloader(Numbered(4), 2, num_workers=0))
        model = self.register_model(new_model(case.get("model")))
        self.register_optimizer(torch.optim.Adam(model.parameters(), lr=0.1))
        self.case, self.summaries, self.hooked = case, [], 0
        if case.get("weighted"):
            self.loss_weight = lambda data_dict, *_: len(data_dict["x"])

    def before_train_step(self, epoch, iteration, data_dict):
        if self.case["way"] == "hook" and int(data_dict["number"][0]) // 2 in self.case["bad"]:
            raise SkipBatch("no correspondences")

    def train_step(self, epoch, iteration, data_dict):
        is_bad = int(data_dict["number"][0]) // 2 in self.case["bad"]
        hidden = self.model[0](data_dict["x"])
        if is_bad and self.case["way"] == "raise":
            raise SkipBatch("no correspondences")
        if is_bad and self.case["way"] == "oom":
            raise torch.OutOfMemoryError(OOM)
        hidden = FailingBackward.apply(hidden) if is_bad else hidden
        loss = (self.model[1:](hidden)[:, 0] - data_dict["y"]).square().mean()
        return {}, {"loss": loss * float("nan") if self.case.get("nan") == iteration and RANK == SIZE - 1 else loss}

    def val_step(self, epoch, iteration, data_dict):
        if int(data_dict["number"][0]) // 2 in self.case.get("bad_val", ()):
            raise SkipBatch("an empty cloud")
        return {}, {"error": loss_of(self.model, data_dict)}

    def after_backward(self, epoch, iteration, data_dict, output_dict, result_dict):
        window = self.case["trainer"].get("grad_acc_steps", 1)
        self.hooked += iteration % window == 0 or iteration == len(self.train_loader)

    def after_train_step(self, epoch, iteration, *dicts):
        if self.case.get("break_at") == (epoch, iteration):
            raise KeyboardInterrupt

    def after_train_epoch(self, epoch, summary_dict):
        self.summaries.append(dict(summary_dict))

    def after_val_epoch(self, epoch, summary_dict):
        self.summaries.append(dict(summary_dict))


def by_hand(case, size):
    """A loop over all processes' batches; a window's gradient is the mean over those that are left of it."""
    model = new_model(case.get("model"))
    optimizer, rows = torch.optim.Adam(model.parameters(), lr=0.1), Rows(case["count"])
    batches = [slice(2 * n, 2 * n + 2) for n in range(case["count"] // 2 + case["count"] % 2)]
    window = size * case["trainer"].get("grad_acc_steps", 1)
    losses = []
    for _ in range(2):
        for start in range(0, len(batches), window):
            numbers = range(start, min(start + window, len(batches)))
            left = [batches[n] for n in numbers if n not in case["bad"]]
            weights = [len(rows.x[part]) if case.get("weighted") else 1 for part in left]
            if not left or (case.get("nan") and start // window + 1 == case["nan"]):
                continue
            optimizer.zero_grad()
            for part, weight in zip(left, weights, strict=True):
                loss = loss_of(model, {"x": rows.x[part], "y": rows.y[part]})
                losses.append(float(loss.detach()))
                (loss * weight / sum(weights)).backward()
            optimizer.step()
    return flat(model), losses


def run(case):
    trainer = Trainer(case)
    try:
        trainer.run()
    except KeyboardInterrupt:
        if not case.get("again"):
            return {"broken": True}
        case["break_at"] = None
        trainer.run()
    return {"weights": flat(trainer.model).tolist(), "summaries": trainer.summaries, "hooked": trainer.hooked}


if __name__ == "__main__":
    serve(run)
