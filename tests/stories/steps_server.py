"""A process of a world that trains models in the ways in which steps use them, case by case; also the steps by hand."""

import contextlib
import copy
import os

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset

from tests.stories.serving import serve
from vision3d_engine import EpochBasedTrainer, build_dataloader, build_optimizer


class BrokenOffError(Exception):
    """What ends a run early."""


RANK, SIZE = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


class Rows(Dataset):
    def __init__(self, count):
        self.x = torch.randn(count, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return {"x": self.x[index], "y": self.x[index].sum().sin(), "index": index}


class OwnShare(torch.utils.data.Sampler):
    """Knows its process: the last one has ten samples, the others four."""

    def __init__(self, size):
        self.rank, self.count = RANK, 10 if size - 1 == RANK else 4

    def __len__(self):
        return self.count

    def __iter__(self):
        return iter(range(self.count))


class Net(nn.Module):
    """Its `dim` is the user's, and not the one of a wrapper."""

    def __init__(self, norm=False, optional=False):
        super().__init__()
        torch.manual_seed(5)
        self.optional = nn.Parameter(torch.ones(3)) if optional else None
        self.dim = 4
        self.encoder = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4) if norm else nn.Identity()
        self.parts = nn.ModuleDict({"head": nn.Linear(4, 1)})

    def encode(self, x):
        return self.norm(self.encoder(x)).tanh()

    def forward(self, x):
        return self.parts["head"](self.encode(x))[:, 0]


def error_of(prediction, batch):
    return (prediction - batch["y"]).square().mean()


def forward(net, extra, batch):
    return error_of(net(batch["x"]), batch)


def method(net, extra, batch):
    return error_of(net.parts["head"](net.encode(batch["x"]))[:, 0], batch)


def method_and_forward(net, extra, batch):
    return forward(net, extra, batch) + net.encode(batch["x"]).square().mean()


def submodule(net, extra, batch):
    return forward(net, extra, batch) + net.encoder(batch["x"]).abs().mean() + net.parts["head"].weight.square().sum()


def attribute(net, extra, batch):
    return forward(net, extra, batch) * net.dim


def twice(net, extra, batch):
    return (net(batch["x"]) - net(batch["x"] + 0.1)).square().mean() + forward(net, extra, batch)


def without_gradient(net, extra, batch):
    with torch.no_grad():
        target = net.encode(batch["x"] + 1)
    return (net.encode(batch["x"]) - target).square().mean() + forward(net, extra, batch)


def recomputed(net, extra, batch):
    features = checkpoint(net.encode, batch["x"], use_reentrant=False)
    return error_of(net.parts["head"](features)[:, 0], batch)


def outside(net, extra, batch):
    return forward(net, extra, batch) * torch.exp(-extra[0]) + extra[0]


def second_order(net, extra, batch):
    x = batch["x"].clone().requires_grad_()
    prediction = net(x)
    (gradient,) = torch.autograd.grad(prediction.sum(), x, create_graph=True)
    return error_of(prediction, batch) + (gradient.norm(dim=1) - 1).square().mean()


def by_hand_too(net, extra, batch):
    """Walk back an auxiliary loss in the step itself."""
    net.encode(batch["x"]).square().mean().backward()
    return forward(net, extra, batch)


def taken_apart(net, extra, batch):
    """Take the label out of the batch."""
    label = batch.pop("y")
    return (net(batch["x"]) - label).square().mean()


def sometimes(net, extra, batch):
    """Use the first parameter of the model for the first sample alone."""
    loss = forward(net, extra, batch)
    return loss + net.optional.square().sum() if 0 in batch["index"].tolist() else loss


STEPS = {
    step.__name__: step
    for step in (
        forward,
        method,
        method_and_forward,
        submodule,
        attribute,
        twice,
        without_gradient,
        recomputed,
        outside,
        second_order,
        by_hand_too,
        taken_apart,
        sometimes,
    )
}
#: rules of a case, and the groups that they mean
RULES = {
    "type": "SGD",
    "lr": 0.1,
    "weight_decay": 0.2,
    "no_decay_on_norm_and_bias": True,
    "param_rules": [{"match": "encoder.bias", "freeze": True}, {"module": "ModuleDict", "lr_factor": 3.0}],
}
#: who of the parameters takes part in an epoch, by name of a case
TRAINED = {"unfrozen": lambda epoch: epoch > 1, "frozen": lambda epoch: epoch == 1}


class Trainer(EpochBasedTrainer):
    def __init__(self, folder, case):
        trainer = {"max_epoch": 2, "log_steps": 2, "fused_optimizer": False, "fsdp_min_params": 10**6}
        super().__init__({"exp": {"output_dir": folder}, "trainer": {**trainer, **case.get("trainer", {})}})
        self.case, self.steps, self.hooked, self.buffers, self.updates = case, 0, [], [], 0
        self.pictures = []
        train = build_dataloader(Rows(case["count"]), 2, num_workers=0)
        if case.get("own_share"):
            train = DataLoader(Rows(10), 2, sampler=OwnShare(case["own_share"]))
        self.register_loader(train, build_dataloader(Rows(case.get("val_count", 6)), 2, num_workers=0))
        self.net = Net(case.get("norm", False), case["step"] == "sometimes").double()
        self.change_trained(1)
        self.extra = [nn.Parameter(torch.full((), 0.5, dtype=torch.float64))]
        model = self.register_model(self.net)
        trained = [*model.parameters(), *(self.extra if case["step"] == "outside" else [])]
        by_hand = torch.optim.SGD(trained, lr=0.1, weight_decay=case.get("decay", 0))
        self.register_optimizer(build_optimizer(model, {"optimizer": RULES}) if case.get("rules") else by_hand)
        self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9)) if case.get("average") else None

    def change_trained(self, epoch):
        if self.case.get("change"):
            self.net.encoder.requires_grad_(TRAINED[self.case["change"]](epoch))

    def before_train_epoch(self, epoch):
        self.change_trained(epoch)
        self.look_at_a_picture()

    def look_at_a_picture(self):
        """Let one process alone call the model, or all of them."""
        who = self.case.get("picture")
        if who and (RANK == 0 or who == "all"):
            with torch.no_grad():
                self.pictures.append(self.model(torch.zeros(2, 3).double()).tolist())

    def train_step(self, epoch, iteration, data_dict):
        self.steps += 1
        self.buffers.append([buffer.tolist() for buffer in self.model.buffers()])
        net = {"own": self.net, "alias": self.model}.get(self.case.get("by"), self.model)
        net = net.module if self.case.get("by") == "alias" else net
        loss = STEPS[self.case["step"]](net, self.extra, data_dict)
        return {"x": data_dict["x"]}, {"loss": loss if self.weight() else loss * torch.nan}

    def weight(self):
        """Return the weight of this process's batch: batch k of the data is with process k mod n."""
        weights = self.case.get("weights", [1])
        return weights[((self.iteration - 1) * SIZE + RANK) % len(weights)]

    def after_backward(self, epoch, iteration, data_dict, output_dict, result_dict):
        self.hooked.append((epoch, iteration, data_dict["index"].tolist(), len(output_dict["x"])))

    def optimizer_step(self):
        self.updates += 1
        if self.updates == self.case.get("break_at"):
            raise BrokenOffError
        super().optimizer_step()
        if self.average is not None:
            self.average.update_parameters(self.model)

    def after_train_step(self, epoch, iteration, data_dict, output_dict, result_dict):
        self.look_at_a_picture()
        data_dict.clear()  # as scripts do that are short of memory

    def after_train_epoch(self, epoch, summary_dict):
        self.look_at_a_picture()

    def before_val_epoch(self, epoch):
        if self.average is not None:
            self.average.eval()

    def val_step(self, epoch, iteration, data_dict):
        model = self.model if self.average is None else self.average
        return {}, {"error": error_of(model(data_dict["x"]), data_dict)}

    def after_val_epoch(self, epoch, summary_dict):
        self.look_at_a_picture()


class Weighing(Trainer):
    """Weights are numbers of the host, tensors, or either, by what a batch happens to hold."""

    def loss_weight(self, data_dict, output_dict, result_dict):
        weight, way = self.weight(), self.case["weigh"]
        is_tensor = way == "device" or (way == "mixed" and weight > 0)
        return torch.tensor(weight) if is_tensor else weight


def whole(tensor):
    return getattr(tensor, "full_tensor", lambda: tensor)().detach().tolist()


def run(case):
    kind = Weighing if "weigh" in case else Trainer
    trainer = kind(case["folder"], case)
    if "break_at" in case:
        with contextlib.suppress(BrokenOffError):
            trainer.run()
        trainer = kind(case["folder"], {**case, "break_at": None, "trainer": {**case["trainer"], "resume": True}})
    trainer.run()
    found = {name: getattr(trainer, name) for name in ("steps", "hooked", "buffers", "pictures")}
    names = list(trainer.model.state_dict())
    weights = [whole(each) for each in (*trainer.net.parameters(), *trainer.extra)]
    found["norm"] = [buffer.tolist() for buffer in trainer.net.buffers()]
    return found | {"names": names, "weights": weights, "is_own": trainer.model is trainer.net}


def by_hand(case, size):
    """Train as the processes shall, in one plain loop: batch k of an update is that of process k."""
    net, rows = Net(case.get("norm", False), case["step"] == "sometimes").double(), Rows(case["count"])
    extra = [nn.Parameter(torch.full((), 0.5, dtype=torch.float64))]
    trained = [*net.parameters(), *(extra if case["step"] == "outside" else [])]
    optimizer = torch.optim.SGD(trained, lr=0.1, weight_decay=case.get("decay", 0))
    if case.get("rules"):
        optimizer = torch.optim.SGD(groups_by_hand(net), lr=0.1, weight_decay=0.2)
    batches = [list(range(i, min(i + 2, len(rows)))) for i in range(0, len(rows), 2)]
    for epoch in (1, 2):
        if case.get("change"):
            net.encoder.requires_grad_(TRAINED[case["change"]](epoch))
        chunk = size * case.get("trainer", {}).get("grad_acc_steps", 1)
        for start in range(0, len(batches), chunk):
            weights = [
                case.get("weights", [1] * len(batches))[k] for k in range(start, min(start + chunk, len(batches)))
            ]
            window = [rows_of(rows, indices) for indices in batches[start : start + chunk]]
            _update_by_hand(net, extra, optimizer, case, list(zip(window, weights, strict=True)))
    return [each.tolist() for each in (*net.parameters(), *extra)]


def groups_by_hand(net):
    """Return what `RULES` mean for the net with a norm."""
    net.encoder.bias.requires_grad_(False)
    head = net.parts["head"]
    return [
        {"params": [net.encoder.weight]},
        {"params": [net.norm.weight, net.norm.bias], "weight_decay": 0},
        {"params": [head.weight], "lr": 0.1 * 3.0},
        {"params": [head.bias], "lr": 0.1 * 3.0, "weight_decay": 0},
    ]


def rows_of(rows, indices):
    return torch.utils.data.default_collate([rows[index] for index in indices])


def _update_by_hand(net, extra, optimizer, case, window):
    """Make one update with the weighted mean of the batches' gradients, each computed by a copy of the model."""
    optimizer.zero_grad()
    total = sum(weight for _, weight in window)
    for batch, weight in window:
        own, own_extra = copy.deepcopy((net, extra))
        STEPS[case["step"]](own, own_extra, batch).backward()
        for parameter, there in zip((*net.parameters(), *extra), (*own.parameters(), *own_extra), strict=True):
            if there.grad is not None and weight:
                share = there.grad * (weight / total)
                parameter.grad = share if parameter.grad is None else parameter.grad + share
    optimizer.step()


if __name__ == "__main__":
    serve(run)
