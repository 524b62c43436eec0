"""Parameters that the first epoch has not changed are named once, with what that usually means; others never are."""

import pytest
import torch
from torch import nn

from tests.toys import settings
from vision3d_engine import EpochBasedTrainer

BATCHES = [{"x": torch.ones(2, 3) * i} for i in range(1, 7)]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.planted = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x, **_options):
        return self.used(x)


class Trainer(EpochBasedTrainer):
    network = Net
    planted_rate: float | None = 0.1

    def __init__(self, folder, **trainer):
        super().__init__(settings(folder, val_every="never", **trainer))
        self.register_loader(BATCHES)
        self.said = []
        torch.manual_seed(0)
        model = self.register_model(self.network())
        self.register_parts(model)

    def register_parts(self, model):
        groups = [{"params": model.used.parameters(), "lr": 0.1}]
        if self.planted_rate is not None:
            groups.append({"params": model.planted.parameters(), "lr": self.planted_rate})
        self.register_optimizer(torch.optim.SGD(groups, lr=0.1))

    def train_step(self, epoch, iteration, data_dict):
        return {}, {"loss": self.model(data_dict["x"], iteration=iteration).square().mean()}


def warnings_of(folder):
    text = next((folder / "logs").glob("train-*.log")).read_text()
    return [line for line in text.splitlines() if "WARNING" in line and " not changed: " in line]


class Both(Net):
    def forward(self, x, **_options):
        return self.used(x) + self.planted(x)


class Detached(Net):
    def forward(self, x, **_options):
        return self.used(x) + self.planted(x).detach()


class Zeroed(Net):
    def forward(self, x, **_options):
        return self.used(x) + self.planted(x) * 0


def planted(network, rate=0.1):
    return type("Planted", (Trainer,), {"network": network, "planted_rate": rate})


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (planted(Net), "2 without a gradient, so not used in the forward pass, or detached: "),
        (planted(Detached), "2 without a gradient, so not used in the forward pass, or detached: "),
        (planted(Both, rate=None), "2 with a gradient, but in no optimizer: "),
        (planted(Both, rate=0.0), "2 with a learning rate of 0: "),
        (planted(Zeroed), "2 with gradients of zeros, or too small for their type: "),
    ],
    ids=["unused", "detached", "in no optimizer", "rate of 0", "zeros"],
)
def test_what_the_first_epoch_has_not_changed_is_named_once_with_the_usual_cause(tmp_path, kind, reason):
    kind(tmp_path, max_epoch=3).run()
    (said,) = warnings_of(tmp_path)
    when = "epochs 1 to 2 (12 updates) have" if "rate" in reason else "epoch 1 (6 updates) has"
    assert f"{when} not changed" in said
    assert f"{reason}planted.weight, planted.bias. Freeze" in said


def test_a_learning_rate_of_0_for_all_is_named_too(tmp_path):
    class Resting(planted(Both)):
        def register_parts(self, model):
            self.register_optimizer(torch.optim.SGD(model.parameters(), lr=0.0))

    Resting(tmp_path).run()
    assert "4 with a learning rate of 0: used.weight, " in warnings_of(tmp_path)[0]


class Sometimes(Net):
    def forward(self, x, iteration=0):
        return self.used(x) + (self.planted(x) if iteration == 3 else 0)


class Frozen(Net):
    def __init__(self):
        super().__init__()
        self.planted.requires_grad_(False)


class Lazy(Net):
    def __init__(self):
        super().__init__()
        self.planted = nn.LazyLinear(3)

    def forward(self, x, **_options):
        return self.used(x) + self.planted(x)


class Symmetric(Net):
    """All numbers of a parameter change alike."""

    def __init__(self):
        super().__init__()
        self.planted = nn.LayerNorm(4, elementwise_affine=True)

    def forward(self, x, **_options):
        return 0.1 * (self.used(x).sum() + self.planted.weight.sum() + self.planted.bias.sum())


class WarmsUp(planted(Both)):
    """The rate of the whole first epoch is 0."""

    def register_parts(self, model):
        super().register_parts(model)
        self.register_scheduler(torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda epoch: float(epoch > 0)))


class Exchanged(planted(Both)):
    """Another head in mid-epoch, in the model and in the optimizer; the first one was not used before."""

    network = Net

    def before_train_step(self, epoch, iteration, data_dict):
        if (epoch, iteration) == (1, 4):
            self.model.planted = nn.Linear(3, 3)
            self.optimizer.param_groups[1]["params"] = [*self.model.planted.parameters()]


class Unfrozen(planted(Frozen)):
    def after_train_epoch(self, epoch, summary_dict):
        self.model.planted.requires_grad_(True)


class Turns(Trainer):
    """Two optimizers: the second one's turn comes in every third step, or not in the first epoch."""

    first = 3

    def register_parts(self, model):
        self.register_optimizer(torch.optim.SGD(model.used.parameters(), lr=0.1), "used")
        self.register_optimizer(torch.optim.SGD(model.planted.parameters(), lr=0.1), "planted")

    def train_step(self, epoch, iteration, data_dict):
        name = "planted" if self.total_steps % 3 == 0 and self.total_steps >= self.first else "used"
        self.update(name, getattr(self.model, name)(data_dict["x"]).square().mean())
        return {}, {"loss": torch.zeros(())}


class Later(Turns):
    first = 7


class Never(Turns):
    first = 99


class Teacher(Net):
    """A copy that follows the weights by a moving average inside of the model."""

    def forward(self, x, **_options):
        with torch.no_grad():
            for average, weights in zip(self.planted.parameters(), self.used.parameters(), strict=True):
                average.lerp_(weights, 0.1)
        return self.used(x)


@pytest.mark.parametrize(
    "kind",
    [
        planted(Both),
        planted(Sometimes),
        planted(Frozen),
        planted(Lazy),
        planted(Symmetric),
        planted(Teacher),
        Unfrozen,
        Turns,
        Later,
        WarmsUp,
        Exchanged,
    ],
    ids=[
        *("used", "sometimes", "frozen", "lazy", "symmetric", "teacher", "unfrozen", "turns", "later"),
        *("warms up", "exchanged"),
    ],
)
def test_what_is_used_now_and_then_or_meant_to_rest_raises_no_false_alarm(tmp_path, kind):
    kind(tmp_path, max_epoch=2).run()
    assert warnings_of(tmp_path) == []


def test_an_optimizer_whose_turn_never_comes_is_named_once_at_the_end_of_training(tmp_path):
    Never(tmp_path, max_epoch=3).run()
    (said,) = warnings_of(tmp_path)
    assert "epochs 1 to 3 (18 updates) have not changed: " in said
    assert "2 in an optimizer whose step never came, or changed nothing: planted.weight, planted.bias" in said


def test_a_layer_that_was_exchanged_in_the_model_alone_is_in_no_optimizer(tmp_path):
    class Forgetful(planted(Both)):
        def before_train_step(self, epoch, iteration, data_dict):
            if (epoch, iteration) == (1, 4):
                self.model.planted = nn.Linear(3, 3)

    Forgetful(tmp_path, max_epoch=2).run()
    (said,) = warnings_of(tmp_path)
    assert "has not changed: 2 with a gradient, but in no optimizer: planted.weight, planted.bias. Freeze" in said


@pytest.mark.parametrize(
    "trainer",
    [{"ema_decay": 0.5}, {"grad_acc_steps": 4}, {"nonfinite": "skip"}, {"precision": "fp16"}],
    ids=str,
)
def test_averages_windows_and_skipped_updates_change_nothing_of_it(tmp_path, trainer):
    planted(Both)(tmp_path / "used", **trainer).run()
    planted(Net)(tmp_path / "unused", **trainer).run()
    assert warnings_of(tmp_path / "used") == []
    assert len(warnings_of(tmp_path / "unused")) == 1


def test_batches_that_load_what_they_yield_are_read_by_training_alone(tmp_path):
    class Batches(list):
        reads = 0

        def __iter__(self):
            self.reads += 1
            return super().__iter__()

    trainer = planted(Both)(tmp_path, max_epoch=2)
    batches = Batches(BATCHES)
    trainer.register_loader(batches)
    trainer.run()
    assert batches.reads == 2  # once an epoch


def test_updates_that_are_all_skipped_are_no_fault_of_the_parameters(tmp_path):
    class Overflows(planted(Both)):
        def train_step(self, *args):
            output_dict, result_dict = super().train_step(*args)
            return output_dict, {"loss": result_dict["loss"] * float("inf")}

    Overflows(tmp_path, nonfinite="skip", max_skipped=1).run()
    text = next((tmp_path / "logs").glob("train-*.log")).read_text()
    assert "skipped updates: 6" in text
    assert warnings_of(tmp_path) == []


def test_an_epoch_that_a_resume_goes_on_with_or_that_was_cut_is_not_judged(tmp_path):
    class Stops(planted(Sometimes)):
        def after_log(self, epoch, iteration, means):
            self.stop()

    Stops(tmp_path, log_steps=4).run()
    assert warnings_of(tmp_path) == []
    planted(Sometimes)(tmp_path, resume=True).run()
    assert all(" not changed: " not in path.read_text() for path in (tmp_path / "logs").glob("train-*.log"))
