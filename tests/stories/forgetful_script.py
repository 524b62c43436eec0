"""A script that resumes exactly, and what may be forgotten in it: ``--fault NAME``, each a class below."""

import random
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from vision3d_engine import EpochBasedTrainer, Hook, IterBasedTrainer, build_dataloader, get_parser
from vision3d_engine.loop.context import PassContext
from vision3d_engine.run.resuming import Resuming

get_parser().add_argument("--fault", default="Exact")
get_parser().add_argument("--workers", type=int, default=0)
get_parser().add_argument("--by_iterations", action="store_true")
ARGS = get_parser().parse_known_args()[0]


class Cubes(Dataset):
    def __init__(self):
        self.shift = 0.0

    def __len__(self):
        return 24

    def __getitem__(self, index):
        noise = np.random.normal()  # noqa: NPY002  the global generator, which is bound to the sample
        return {"x": torch.randn(3) + noise + self.shift, "y": float(index)}


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.3), nn.Linear(8, 1))
        self.register_buffer("size", torch.ones(()), persistent=False)
        self.seen = 0

    def forward(self, x):
        return self.layers(x)[:, 0] * self.size


class Exact(IterBasedTrainer if ARGS.by_iterations else EpochBasedTrainer):
    """Nothing is forgotten."""

    def __init__(self):
        super().__init__({"exp": {"output_dir": "elsewhere"}, "trainer": {"max_epoch": 4, "log_steps": 2}})
        self.data = self.dataset()
        options = {"num_workers": ARGS.workers, "persistent_workers": ARGS.workers > 0}
        train = build_dataloader(self.data, 4, shuffle=True, **options)
        self.register_loader(train, build_dataloader(Cubes(), 4, num_workers=ARGS.workers))
        torch.manual_seed(0)
        model = self.register_model(self.network())
        self.register_optimizer(torch.optim.Adam(model.parameters()))
        self.register_scheduler(torch.optim.lr_scheduler.StepLR(self.optimizer, 1, gamma=0.9))
        self.generator = self.register_state("generator", random.Random(3))
        self.factor, self.written = 1.0, 0
        self.prepare()

    dataset, network = Cubes, Model

    def prepare(self):
        """Make what the fault needs."""

    def before_train_step(self, epoch, iteration, data_dict):
        data_dict["x"] += 0.1 * self.generator.random()

    def train_step(self, epoch, iteration, data_dict):
        error = self.model(data_dict["x"]) - data_dict["y"]
        return {}, {"loss": self.factor * error.square().mean()}

    def val_step(self, epoch, iteration, data_dict):
        return {}, {"size": self.model(data_dict["x"]).abs().mean()}


class Counter(Exact):
    """Steps are counted in an attribute."""

    def before_train_step(self, epoch, iteration, data_dict):
        self.factor += 1


class PythonGenerator(Exact):
    """A generator of the script's own is seeded, but not registered."""

    def prepare(self):
        self.own = random.Random(0)

    def before_train_step(self, epoch, iteration, data_dict):
        data_dict["x"] += self.own.random()


class NumpyGenerator(Exact):
    """The same with numpy; it is drawn from at epoch ends only."""

    def prepare(self):
        self.own = np.random.default_rng(0)

    def after_train_epoch(self, epoch, summary_dict):
        self.factor += self.own.random()


class HookGenerator(Exact):
    """A hook draws from a generator that nobody has seeded."""

    def prepare(self):
        class Jitter(Hook):
            own = random.Random()

            def before_train_step(self, epoch, iteration, data_dict):
                data_dict["x"] += self.own.random()

        self.add_hook(Jitter())


class HookDraws(Exact):
    """A hook draws from a global generator as often as it has been called."""

    def prepare(self):
        class Drawing(Hook):
            calls = 0

            def before_val_step(self, epoch, iteration, data_dict):
                self.calls += 1
                [random.random() for _ in range(self.calls)]

        self.add_hook(Drawing())


class Buffer(Exact):
    """A buffer changes, and is not in the state dict."""

    def train_step(self, epoch, iteration, data_dict):
        self.model.size.mul_(1.01)
        return super().train_step(epoch, iteration, data_dict)


class History(Exact):
    """A list grows over the epochs, and a metric of the validation is its mean."""

    def prepare(self):
        self.history = []

    def after_val_epoch(self, epoch, summary_dict):
        self.history.append(float(summary_dict["size"]))
        summary_dict["smooth"] = sum(self.history) / len(self.history)


class Data(Exact):
    """A hook changes the data set, step by step."""

    def after_train_epoch(self, epoch, summary_dict):
        self.data.shift += 1.0


class CountingCubes(Cubes):
    def __getitem__(self, index):
        self.shift += 0.1
        return super().__getitem__(index)


class WorkerState(Exact):
    """A data set counts in the worker, which lives from epoch to epoch."""

    dataset = CountingCubes


class Clock(Exact):
    """The loss follows the time."""

    def train_step(self, epoch, iteration, data_dict):
        self.factor = 1.0 + time.time() % 1
        return super().train_step(epoch, iteration, data_dict)


class ForgetfulModel(Model):
    def forward(self, x):
        self.seen += self.training
        return super().forward(x) / (1 + self.seen)

    def get_extra_state(self):
        return {}

    def set_extra_state(self, state):
        pass


class ExtraState(Exact):
    """The model counts, and its extra state leaves the count out."""

    network = ForgetfulModel


class ForgetfulState:
    def __init__(self):
        self.level, self.speed = 1.0, 0.1

    def advance(self):
        self.speed *= 1.5
        self.level += self.speed

    def state_dict(self):
        return {"level": self.level}

    def load_state_dict(self, state):
        self.level = state["level"]


class State(Exact):
    """A registered object does not save all of its state."""

    def prepare(self):
        self.curriculum = self.register_state("curriculum", ForgetfulState())

    def after_train_epoch(self, epoch, summary_dict):
        self.curriculum.advance()
        self.factor = self.curriculum.level


class Warmup:
    def __init__(self, optimizer):
        self.optimizer, self.steps = optimizer, 0

    def step(self):
        self.steps += 1
        self.optimizer.param_groups[0]["lr"] = 1e-3 / self.steps


class Schedule(Exact):
    """A schedule of the script's own is not registered."""

    def prepare(self):
        self.warmup = Warmup(self.optimizer)

    def scheduler_step(self):
        self.warmup.step()


class SecondOptimizer(Exact):
    """A second optimizer with momentum is not registered."""

    def prepare(self):
        self.second = torch.optim.SGD(self.model.layers[2].parameters(), 1e-3, momentum=0.9)

    def optimizer_step(self):
        self.second.step()
        super().optimizer_step()


class BeforeEpoch(Exact):
    """What a hook multiplies once an epoch begins anew in a resumed run."""

    def before_train_epoch(self, epoch):
        self.factor *= 1.5


class _Appending(Exact):
    """A file grows; a hook that a resume calls once more appends to it once more."""

    def append(self):
        path = Path(self.output_dir) / "lines.txt"
        with path.open("a") as file:
            file.write("line\n")
        self.factor = len(path.read_text().splitlines())


class AppendsBeforeEpoch(_Appending):
    def before_train_epoch(self, epoch):
        self.append()


class AppendsAfterValidation(_Appending):
    def before_train_epoch(self, epoch):
        path = Path(self.output_dir) / "lines.txt"
        self.factor = len(path.read_text()) if path.exists() else 1

    def after_val_epoch(self, epoch, summary_dict):
        self.append()


class Raises(Exact):
    """An object cannot take its own state back."""

    def prepare(self):
        class Broken(ForgetfulState):
            def load_state_dict(self, state):
                message = "no level here"
                raise ValueError(message)

        self.register_state("broken", Broken())


class OwnLoader:
    """Batches in an order that a generator of its own draws, which goes on from epoch to epoch."""

    def __init__(self):
        self.batches, self.order = list(build_dataloader(Cubes(), 4, num_workers=0)), random.Random(0)

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        return iter(self.order.sample(self.batches, len(self)))


class Loader(Exact):
    """A loader of the script's own follows a generator that is not registered."""

    def prepare(self):
        torch.manual_seed(1)
        self.register_loader(OwnLoader(), self.val_loader)


class ScrambledMomentum(torch.optim.Adam):
    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        for state in self.state.values():
            state["exp_avg"] = state["exp_avg"].flatten().flip(0).reshape(state["exp_avg"].shape)


class Momentum(Exact):
    """An optimizer takes its momentum back in another layout."""

    def prepare(self):
        self.optimizer = None
        self.register_optimizer(ScrambledMomentum(self.model.parameters()))


class DrawsAfterEpoch(Exact):
    """Exact: a hook draws from the global generators."""

    def after_train_epoch(self, epoch, summary_dict):
        with torch.no_grad():
            self.model.layers[0].bias.add_(torch.randn(8))


class UnseededHooks(DrawsAfterEpoch):
    """The engine, broken: it does not seed the hooks around epochs."""

    def prepare(self):
        PassContext.fire = lambda context, moment, *args: context.hooks.fire(moment, *args)


class Level(ForgetfulState):
    def state_dict(self):
        return {"level": self.level, "speed": self.speed}

    def load_state_dict(self, state):
        self.level, self.speed = state["level"], state["speed"]


class AdvancesBeforeEpoch(Exact):
    """Exact: a registered state is advanced as an epoch opens."""

    def prepare(self):
        self.curriculum = self.register_state("curriculum", Level())

    def before_train_epoch(self, epoch):
        self.curriculum.advance()

    def train_step(self, epoch, iteration, data_dict):
        self.factor = self.curriculum.level
        return super().train_step(epoch, iteration, data_dict)


class AdvancesTwice(AdvancesBeforeEpoch):
    """The engine, broken: it does not restore states after the hook that opens an epoch again."""

    def prepare(self):
        super().prepare()
        Resuming.restore_again = lambda _: None


class Images(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 1)
        self.to(memory_format=torch.channels_last)

    def forward(self, x):
        image = x[:, :, None, None] * torch.arange(25.0).reshape(5, 5) / 25
        return self.head(self.convolution(image).relu().mean((2, 3)))[:, 0]


class ChannelsLast(Exact):
    """Exact: weights and momentum in another layout."""

    network = Images


class Harmless(Exact):
    """An attribute counts, and no number follows it."""

    def prepare(self):
        self.calls, self.began = 0, time.time()

    def train_step(self, epoch, iteration, data_dict):
        self.calls += 1
        return super().train_step(epoch, iteration, data_dict)


if __name__ == "__main__":
    globals()[ARGS.fault]().run()
