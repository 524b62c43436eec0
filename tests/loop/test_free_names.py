"""Names that scripts assign on trainers and testers mean nothing to the engine."""

import pytest
import torch

from tests.toys import (
    ToyBatchTester,
    ToyEpochTrainer,
    ToyIterTrainer,
    ToySingleTester,
    linear_model,
    save_weights,
    settings,
)
from vision3d_engine import EpochBasedTrainer, Hook, RegistrationError

NAMES = (
    "output_dir",
    "cfg",
    "device",
    "log_dir",
    "loss",
    "metrics",
    "_max_epoch",
    "_logger",
    "_args",
    "hooks",
    "timer",
    "update",
    "stop",
    "val_name",
    "ema",
    "precision",
)


@pytest.mark.parametrize("kind", [ToyEpochTrainer, ToyIterTrainer, ToySingleTester, ToyBatchTester])
def test_scripts_may_assign_any_of_them(kind, tmp_path):
    save_weights(tmp_path)
    toy = kind(settings(tmp_path, log_steps=1))
    for name in NAMES:
        setattr(toy, name, object())
    toy.run()
    assert (tmp_path / "logs").is_dir()


def test_a_step_may_be_set_on_the_object(tmp_path):
    toy = ToyEpochTrainer(settings(tmp_path))
    seen = []
    toy.after_train_step = lambda *args: seen.append(args[1])
    toy.run()
    assert seen == [1, 2, 3]


def test_a_trainer_without_its_parts_says_what_to_call(tmp_path):
    for part, method in (("optimizer", "optimizer"), ("model", "model"), ("train_loader", "loader")):
        toy = ToyEpochTrainer(settings(tmp_path))
        setattr(toy, part, None)
        with pytest.raises(RegistrationError, match=f"call register_{method} before run"):
            toy.run()


@pytest.mark.parametrize(
    ("method", "argument", "message"),
    [
        ("register_model", {}, "must be a torch.nn.Module"),
        ("register_optimizer", 3, "register_optimizer got 3 .* has no step"),
        ("register_scheduler", "x", "register_scheduler got 'x' .* has no step"),
        ("add_hook", 5, "has no method that is ever called here"),
    ],
)
def test_a_part_of_the_wrong_kind_is_refused(method, argument, message, tmp_path):
    toy = ToyEpochTrainer(settings(tmp_path))
    with pytest.raises(RegistrationError, match=message):
        getattr(toy, method)(argument)
    with pytest.raises(RegistrationError, match="register_loader got None as training loader"):
        toy.register_loader(None, [])


def test_a_misspelt_hook_method_is_an_error_when_the_class_is_defined():
    with pytest.raises(RegistrationError, match="after_train_stpe is never called; did you mean 'after_train_step'"):
        type("Typo", (Hook,), {"after_train_stpe": lambda self: None})


def test_a_schedule_that_needs_a_metric_says_how_to_give_it_one(tmp_path):
    class Plain(EpochBasedTrainer):
        def train_step(self, epoch, iteration, data_dict):
            return {}, {}

        val_step = train_step

    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(torch.optim.SGD(linear_model().parameters(), lr=1.0))
    with pytest.raises(RegistrationError, match=r"metric='loss'\) .* or override scheduler_step\(\)"):
        Plain(settings(tmp_path)).register_scheduler(plateau)
    toy = ToyEpochTrainer(settings(tmp_path))
    toy.register_scheduler(None)
    toy.register_scheduler(plateau)  # it overrides scheduler_step


@pytest.mark.parametrize("what", ["model", "optimizer"])
def test_a_second_part_of_a_kind_is_refused_with_how_to_replace_the_first_one(what, tmp_path):
    toy = ToyEpochTrainer(settings(tmp_path))
    model = linear_model()
    second = model if what == "model" else torch.optim.Adam(model.parameters())
    with pytest.raises(RegistrationError, match=rf"got a second {what}, .* set self\.{what} = None before"):
        getattr(toy, f"register_{what}")(second)
    setattr(toy, what, None)
    getattr(toy, f"register_{what}")(second)
    assert getattr(toy, what) is second


def test_an_optimizer_of_another_copy_of_the_model_is_refused(tmp_path):
    toy = ToyEpochTrainer(settings(tmp_path))
    toy.optimizer = torch.optim.SGD(linear_model().parameters(), lr=0.1)
    with pytest.raises(
        RegistrationError, match=r"holds 2 parameters, none of which .*Build it from self.model.parameters"
    ):
        toy.run()


@pytest.mark.parametrize("name", ["backward", "optimizer_step", "save", "train_step"])
def test_an_attribute_that_hides_what_the_engine_calls_is_refused(name, tmp_path):
    toy = ToyEpochTrainer(settings(tmp_path))
    setattr(toy, name, 5)
    with pytest.raises(
        RegistrationError, match=rf"self\.{name} is 5 \(int\), which hides the method {name} .* another name"
    ):
        toy.run()
