"""Two networks that take turns: a trainer, and the same updates by a loop written by hand in float64."""

from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.nn.functional import softplus
from torch.utils.data import DataLoader, Dataset

from vision3d_engine import EpochBasedTrainer

RATES = {"generator": 0.02, "discriminator": 0.05}
DECAY = 0.9


class Clouds(Dataset):
    """Real samples (3,) and the noise (2,) of generated ones, as float64; sample i is a function of i."""

    def __init__(self, count: int) -> None:
        generator = torch.Generator().manual_seed(11)
        self.x = torch.randn(count, 3, generator=generator, dtype=torch.float64)
        self.z = torch.randn(count, 2, generator=generator, dtype=torch.float64)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: Any) -> dict[str, torch.Tensor]:
        return {"x": self.x[index], "z": self.z[index]}


def networks() -> dict[str, nn.Module]:
    torch.manual_seed(2)
    sizes = {"generator": (2, 4, 3), "discriminator": (3, 4, 1)}
    return {name: _network(*size).double() for name, size in sizes.items()}


def _network(inner: int, width: int, outer: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inner, width), nn.Tanh(), nn.Linear(width, outer))


def loss_d(models: Any, batch: Any) -> torch.Tensor:
    fake = models["generator"](batch["z"]).detach()
    return (softplus(-models["discriminator"](batch["x"])) + softplus(models["discriminator"](fake))).mean()


def loss_g(models: Any, batch: Any) -> torch.Tensor:
    return softplus(-models["discriminator"](models["generator"](batch["z"]))).mean()


def loss_of_both(models: Any, batch: Any) -> torch.Tensor:
    return loss_g(models, batch) + loss_d(models, batch)


def groups_of(models: Any) -> list[dict[str, Any]]:
    return [{"params": list(model.parameters()), "lr": RATES[name]} for name, model in models.items()]


class Turns(EpochBasedTrainer):
    """Trains both networks in one of several styles.

    ``turns``: the discriminator in the step, the generator by the loss that is returned; ``by_name``: both in the step;
    ``critic``: the discriminator three times a step; ``rarely``: the generator in every second step; ``joint``: one
    loss for both; ``single``: one loss and one optimizer for both.

    A schedule multiplies the rates by `DECAY` after each ``update`` or ``epoch``.
    """

    def __init__(
        self,
        cfg: Any,
        count: int = 12,
        style: str = "turns",
        limits: Any = None,
        kind: Any = None,
        schedule: str | None = None,
    ) -> None:
        super().__init__(cfg)
        loader = DataLoader(Clouds(count), batch_size=2)
        self.register_loader(loader, loader)
        self.style, kind = style, kind or torch.optim.Adam
        models = {name: self.register_model(model, name=name) for name, model in networks().items()}
        if style == "single":
            self.register_optimizer(optimizer := kind(groups_of(models), lr=1.0))
            self._follow(optimizer, None, schedule)
        for name, model in models.items() if style != "single" else ():
            optimizer = kind(model.parameters(), lr=RATES[name])
            self.register_optimizer(optimizer, name=name, **((limits or {}).get(name, {})))
            self._follow(optimizer, name, schedule)

    def _follow(self, optimizer: Any, name: str | None, schedule: str | None) -> None:
        if schedule is not None:
            exponential = torch.optim.lr_scheduler.ExponentialLR(optimizer, DECAY)
            self.register_scheduler(exponential, name=name, interval=schedule)

    def train_step(self, epoch: int, iteration: int, data_dict: Any) -> Any:
        models = self.model
        if self.style in {"joint", "single"}:
            return {}, {"loss": loss_of_both(models, data_dict)}
        for _ in range(3 if self.style == "critic" else 1):
            own = loss_d(models, data_dict)
            self.update("discriminator", own)
        loss = loss_g(models, data_dict)
        if self.style == "by_name":
            self.update("generator", loss)
        if self.style == "rarely" and iteration % 2:
            loss = loss.detach()
        return {}, {"loss": loss, "loss_d": own}

    def val_step(self, epoch: int, iteration: int, data_dict: Any) -> Any:
        return {}, {"loss": loss_g(self.model, data_dict)}


class ByHand:
    """The same updates; what several processes do at a time is one big batch here."""

    def __init__(
        self,
        style: str = "turns",
        limits: Any = None,
        kind: Any = None,
        clip: float | None = None,
        schedule: str | None = None,
        ema: float | None = None,
    ) -> None:
        self.models, self.style, kind = networks(), style, kind or torch.optim.Adam
        self.limits, self.clip, self.schedule, self.ema = limits or {}, clip, schedule, ema
        self.average: dict[str, torch.Tensor] = {}
        self.updates = 0
        names = {name: [name] for name in self.models} if style != "single" else {"single": list(self.models)}
        self.owned = {key: [p for name in own for p in self.models[name].parameters()] for key, own in names.items()}
        self.optimizers = {
            key: kind(groups_of({name: self.models[name] for name in own}), lr=1.0) for key, own in names.items()
        }

    def train(self, count: int = 12, processes: int = 1, window: int = 1, epochs: int = 1) -> dict[str, torch.Tensor]:
        """Return the weights after some epochs."""
        batches = list(DataLoader(Clouds(count), batch_size=2))
        steps = [batches[start : start + processes] for start in range(0, len(batches), processes)]
        is_joint = self.style in {"joint", "single"}
        for _ in range(epochs):
            for start in range(0, len(steps), window):
                rounds = steps[start : start + window]
                (self.joint if is_joint else self.turns)(list(chain(*rounds[:-1])), rounds[-1], start)
                self.follow()
                self.decay("update")
            self.decay("epoch")
        return self.weights()

    def weights(self) -> dict[str, torch.Tensor]:
        parts = ((name, model.state_dict()) for name, model in self.models.items())
        return {f"{name}.{key}": value for name, state in parts for key, value in state.items()}

    def follow(self) -> None:
        """Average the weights, with a decay that warms up."""
        if self.ema is None:
            return
        rate = min(self.ema, (1 + self.updates) / (10 + self.updates)) if self.updates else 0.0
        for name, value in self.weights().items():
            self.average[name] = rate * self.average.get(name, torch.zeros(())) + (1 - rate) * value
        self.updates += 1

    def decay(self, moment: str) -> None:
        for optimizer in self.optimizers.values() if self.schedule == moment else ():
            for group in optimizer.param_groups:
                group["lr"] *= DECAY

    def joint(self, before: list[Any], last: list[Any], _start: int) -> None:
        sums = {name: self.gradients(name, loss_of_both, before + last) for name in self.owned}
        for name in self.owned:
            self.step(name, sums[name], len(before + last))

    def turns(self, before: list[Any], last: list[Any], start: int) -> None:
        """Gradients of the generator's earlier losses come from before the discriminator's step."""
        early = self.gradients("generator", loss_g, before)
        for _ in range(3 if self.style == "critic" else 1):
            self.step("discriminator", self.gradients("discriminator", loss_d, before + last), len(before + last))
        if self.style == "rarely" and start % 2 == 0:  # windows of one batch
            return
        late = self.gradients("generator", loss_g, last)
        self.step("generator", [a + b for a, b in zip(early, late, strict=True)], len(before + last))

    def gradients(self, name: str, loss: Any, batches: list[Any]) -> list[torch.Tensor]:
        total = [torch.zeros_like(parameter) for parameter in self.owned[name]]
        for batch in batches:
            found = torch.autograd.grad(loss(self.models, batch), self.owned[name])
            total = [a + b for a, b in zip(total, found, strict=True)]
        return total

    def step(self, name: str, sums: list[torch.Tensor], number: int) -> None:
        parameters, limits = self.owned[name], self.limits.get(name, {})
        for parameter, total in zip(parameters, sums, strict=True):
            parameter.grad = total / number
        if (norm := limits.get("clip_grad_norm", self.clip)) is not None:
            nn.utils.clip_grad_norm_(parameters, norm)
        if (value := limits.get("clip_grad_value")) is not None:
            nn.utils.clip_grad_value_(parameters, value)
        self.optimizers[name].step()
