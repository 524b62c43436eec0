"""A process of a world whose processes drift apart, resume from folders of their own, or see other numbers."""

from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.optim.swa_utils import AveragedModel

from tests.stories.serving import serve
from vision3d_engine import EpochBasedTrainer, build_dataloader


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 24

    def __getitem__(self, index):
        return {"x": torch.randn(3, generator=torch.Generator().manual_seed(index)), "index": index}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.head = nn.Linear(3, 4), nn.Linear(4, 1)

    def forward(self, x):
        return self.head(self.encoder(x).tanh())


class Plain(EpochBasedTrainer):
    """Nothing wrong: 24 / processes steps an epoch."""

    def __init__(self, case):
        trainer = {"max_epoch": 1, "log_steps": 1, **case.get("trainer", {})}
        folder = case["folder"] if case.get("shared", True) else f"{case['folder']}/rank{dist.get_rank()}"
        super().__init__({"exp": {"output_dir": folder}, "trainer": trainer})
        self.case, self.rank, self.lines, self.summaries = case, dist.get_rank(), [], []
        loaders = [build_dataloader(Rows(), 1, num_workers=0, shuffle=False) for _ in range(2)]
        self.register_loader(*loaders)
        torch.manual_seed(0)
        self.net = Net()
        self.prepare()
        self.register_model(self.net)
        self.register_optimizer(torch.optim.SGD(self.parameters(), lr=0.1))
        if "metric" in case:
            self.save_best_model_on_metric(case["metric"])

    def prepare(self):
        pass

    def parameters(self):
        return self.net.parameters()

    def train_step(self, epoch, iteration, data_dict):
        return {}, {"loss": self.model(data_dict["x"]).square().mean()}

    def val_step(self, epoch, iteration, data_dict):
        self.add_records(data_dict["index"].tolist())
        return {}, {"square": self.model(data_dict["x"]).square().mean()}

    def after_log(self, epoch, iteration, means):
        self.lines.append((epoch, iteration, sorted(means)))

    def after_val_epoch(self, epoch, summary_dict):
        self.summaries.append(summary_dict)


class LossWeights(Plain):
    """Learnable weights of the loss, in the optimizer but not in the model; drawn by each process for itself."""

    def prepare(self):
        self.log_sigma = nn.Parameter(torch.full((1,), float(dist.get_rank())))

    def parameters(self):
        return [*self.net.parameters(), self.log_sigma]

    def train_step(self, epoch, iteration, data_dict):
        loss = super().train_step(epoch, iteration, data_dict)[1]["loss"]
        return {}, {"loss": loss * torch.exp(-self.log_sigma[0]) + self.log_sigma[0]}


class SecondNetwork(Plain):
    """A network with an optimizer of its own, stepped in optimizer_step by gradients that nobody exchanges."""

    def prepare(self):
        self.critic = nn.Linear(1, 1)
        self.others = [torch.optim.SGD(self.critic.parameters(), lr=0.1)]

    def train_step(self, epoch, iteration, data_dict):
        value = self.model(data_dict["x"])
        self.critic(value.detach()).sum().backward()
        return {}, {"loss": value.square().mean()}

    def optimizer_step(self):
        super().optimizer_step()
        self.others[0].step()
        self.others[0].zero_grad()


class TwoInOne(Plain):
    """The same two networks as one model: both losses are returned, both optimizers stepped in optimizer_step."""

    def prepare(self):
        self.net.critic = nn.Linear(1, 1)
        self.other = torch.optim.SGD(self.net.critic.parameters(), lr=0.1)

    def parameters(self):
        return [*self.net.encoder.parameters(), *self.net.head.parameters()]

    def train_step(self, epoch, iteration, data_dict):
        value = self.model(data_dict["x"])
        return {}, {"loss": value.square().mean() + self.model.critic(value.detach()).sum()}

    def optimizer_step(self):
        super().optimizer_step()
        self.other.step()
        self.other.zero_grad()


class LateEncoder(Plain):
    """An encoder that is frozen in epoch 1; what happens to it there may differ between processes."""

    def prepare(self):
        self.net.encoder.requires_grad_(False)

    def before_train_epoch(self, epoch):
        if epoch == 1 and self.rank == 1 and self.case.get("drifts"):
            with torch.no_grad():
                self.net.encoder.weight[0, 0] += 1
        self.net.encoder.requires_grad_(epoch > 1)


class UnfrozenInTheMidst(Plain):
    """An encoder that is unfrozen while an epoch is trained, where its gradients are not exchanged."""

    def prepare(self):
        self.net.encoder.requires_grad_(False)

    def before_train_step(self, epoch, iteration, data_dict):
        self.net.encoder.requires_grad_(iteration > 2)


class ByHand(Plain):
    """One process changes a weight after a step."""

    def after_train_step(self, epoch, iteration, *dicts):
        if (epoch, iteration) == tuple(self.case["at"]) and self.rank == dist.get_world_size() - 1:
            with torch.no_grad():
                self.net.head.bias += 1e-6


class LateGroup(Plain):
    """A parameter group that is added in step 2, with another value on each process."""

    def after_train_step(self, epoch, iteration, *dicts):
        if (epoch, iteration) == (1, 2):
            self.scale = nn.Parameter(torch.tensor([float(self.rank)]))
            self.optimizer.add_param_group({"params": [self.scale]})


class OneGroup(Plain):
    """One process alone trains one parameter more."""

    def after_train_step(self, epoch, iteration, *dicts):
        if (epoch, iteration) == (1, 2) and self.rank == 1:
            self.scale = nn.Parameter(torch.zeros(1))
            self.optimizer.add_param_group({"params": [self.scale]})


class MainMetric(Plain):
    """The documented use of gather_records: a metric that only the main process has."""

    def after_val_epoch(self, epoch, summary_dict):
        super().after_val_epoch(epoch, summary_dict)
        if records := self.gather_records():
            summary_dict["count"] = float(len(records) + epoch)


class OtherMetric(Plain):
    """A metric of the samples that each process has seen, one that the main process lacks, and a note."""

    def after_val_epoch(self, epoch, summary_dict):
        super().after_val_epoch(epoch, summary_dict)
        summary_dict |= {"mine": 10.0 * epoch + self.rank, "note": "kept", "nan": float("nan")}
        if self.rank > 0:
            summary_dict["stray"] = 1.0


class Averaged(Plain):
    """An average of the weights, of a module that is wrapped in another way in each run."""

    def prepare(self):
        net = Net()
        wrapped = nn.parallel.DistributedDataParallel(net) if self.case["wraps"] else net
        self.ema = self.register_state("ema", AveragedModel(wrapped))

    def optimizer_step(self):
        super().optimizer_step()
        for mine, one in zip(self.ema.parameters(), self.net.parameters(), strict=True):
            mine.data.copy_(one.data)


KINDS = {kind.__name__: kind for kind in (Plain, *Plain.__subclasses__())}


def run(case):
    trainer = KINDS[case["kind"]](case)
    names = ("lines", "summaries")
    try:
        trainer.run()
        error = ""
    except Exception as failure:  # noqa: BLE001  the test decides
        error = f"{type(failure).__name__}: {failure}"
    found = {name: getattr(trainer, name) for name in names} | {"error": error, "total_steps": trainer.total_steps}
    if hasattr(trainer, "log_sigma"):
        found["log_sigma"] = trainer.log_sigma.tolist()
    if hasattr(trainer, "ema"):
        found["ema"] = [each.tolist() for each in trainer.ema.parameters()]
    found["log"] = Path(trainer.log_file).read_text() if trainer.log_file else ""
    return found


if __name__ == "__main__":
    serve(run)
