"""Several optimizers in one trainer, against a loop written by hand."""

import pytest
import torch

from tests.toys import ToyEpochTrainer, linear_model, settings
from tests.turns import ByHand, Clouds, Turns, loss_d, loss_g, loss_of_both, networks
from vision3d_engine import CheckpointError, EngineError, RegistrationError

LIMITS = {"discriminator": {"clip_grad_norm": 0.05}, "generator": {"clip_grad_value": 0.01}}


def assert_equal_to(trainer, expected):
    found = trainer.model.state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name] - value).abs().max() <= 1e-12, name


@pytest.mark.parametrize("style", ["turns", "by_name", "critic", "rarely", "joint"])
def test_networks_that_take_turns_learn_as_in_a_loop_by_hand(style, tmp_path):
    trainer = Turns(settings(tmp_path, max_epoch=2), style=style)
    trainer.run()
    assert_equal_to(trainer, ByHand(style).train(epochs=2))


@pytest.mark.parametrize("style", ["turns", "by_name", "joint"])
@pytest.mark.parametrize("window", [2, 4])
def test_one_window_accumulates_for_all_of_them(style, window, tmp_path):
    trainer = Turns(settings(tmp_path, grad_acc_steps=window), style=style)
    trainer.run()
    assert_equal_to(trainer, ByHand(style).train(window=window))


@pytest.mark.parametrize("style", ["turns", "joint"])
def test_each_may_have_limits_of_its_own(style, tmp_path):
    trainer = Turns(settings(tmp_path, clip_grad_norm=0.02), style=style, limits=LIMITS)
    trainer.run()
    assert_equal_to(trainer, ByHand(style, LIMITS, clip=0.02).train())


@pytest.mark.parametrize(("style", "window"), [("turns", 1), ("turns", 2), ("joint", 2), ("critic", 1), ("rarely", 1)])
def test_losses_that_are_scaled_by_powers_of_two_change_nothing(style, window, tmp_path):
    trainer = Turns(settings(tmp_path, precision="fp16", grad_acc_steps=window), style=style)
    trainer.run()
    assert_equal_to(trainer, ByHand(style).train(window=window))


def errors_of(folder, step, **options):
    class Wrong(Turns):
        train_step = step

    with pytest.raises(EngineError) as found:
        Wrong(settings(folder, **options)).run()
    return str(found.value)


def test_what_cannot_be_an_update_is_refused_with_what_to_do(tmp_path):
    def unknown(self, epoch, iteration, data_dict):
        self.update("discriminator_", loss_d(self.model, data_dict))

    def teaches_nothing(self, epoch, iteration, data_dict):
        self.update("discriminator", loss_d(self.model, data_dict).detach())

    def used_up(self, epoch, iteration, data_dict):
        loss = loss_of_both(self.model, data_dict)
        self.update("discriminator", loss)
        return {}, {"loss": loss + 1}

    def changed(self, epoch, iteration, data_dict):
        before = loss_g(self.model, data_dict)
        self.update("discriminator", loss_d(self.model, data_dict))
        return {}, {"loss": before}

    def late(self, epoch, iteration, data_dict):
        if iteration == 2:
            self.update("discriminator", loss_d(self.model, data_dict))
        return {}, {"loss": loss_g(self.model, data_dict)}

    def twice(self, epoch, iteration, data_dict):
        for _ in range(2):
            self.update("discriminator", loss_d(self.model, data_dict))

    cases = (
        (unknown, "there is no optimizer 'discriminator_'; did you mean 'discriminator'", 1),
        (teaches_nothing, "it must be one number that requires grad", 1),
        (used_up, "Compute it anew after self.update", 1),
        (changed, "through weights that it has changed", 1),
        (late, "have driven this optimizer too: call it in every step, or in none", 2),
        (twice, "call it once a step, or set trainer.grad_acc_steps to 1", 2),
    )
    for step, message, window in cases:
        assert message in errors_of(tmp_path / step.__name__, step, grad_acc_steps=window), step


def test_a_step_that_updates_all_of_them_may_return_anything(tmp_path):
    class Free(Turns):
        def train_step(self, epoch, iteration, data_dict):
            own = loss_d(self.model, data_dict)
            self.update("discriminator", own)
            self.update("generator", loss_g(self.model, data_dict))
            return {}, ({"loss": own} if iteration % 2 else {"other": 1.0})

    trainer = Free(settings(tmp_path))
    trainer.run()
    assert_equal_to(trainer, ByHand("by_name").train())


def test_names_and_limits_are_checked_at_registration(tmp_path):
    trainer = Turns(settings(tmp_path))
    optimizer = torch.optim.SGD(networks()["generator"].parameters(), lr=0.1)
    for act, message in (
        (lambda: trainer.register_optimizer(optimizer), "got a second optimizer, SGD.*name='generator'"),
        (lambda: trainer.register_optimizer(optimizer, "generator"), "'generator' is registered already"),
        (lambda: trainer.register_optimizer(optimizer, "third", clip_grad_norm=0), "clip_grad_norm=0"),
        (lambda: trainer.register_model(linear_model(), "generator"), "this name is taken"),
        (lambda: trainer.register_model(linear_model(), "a.b"), "cannot hold it"),
        (lambda: trainer.register_model(linear_model()), "got a second model, Linear"),
        (lambda: ToyEpochTrainer(settings(tmp_path / "toy")).update("a", None), "registered by name"),
    ):
        with pytest.raises(RegistrationError, match=message):
            act()
    trainer.register_optimizer(optimizer, "third")
    with pytest.raises(RegistrationError, match=r"optimizer 'third' \(SGD\) holds 4 parameters, none of which"):
        trainer.run()


def test_two_optimizers_of_one_parameter_are_refused(tmp_path):
    trainer = Turns(settings(tmp_path))
    trainer.register_optimizer(torch.optim.SGD(trainer.model.parameters(), lr=0.1), name="all")
    with pytest.raises(RegistrationError, match="the optimizers 'generator' and 'all' hold the same parameters"):
        trainer.run()


def test_a_checkpoint_holds_all_of_them_by_name_and_fits_no_other_names(tmp_path):
    Turns(settings(tmp_path)).run()
    state = torch.load(tmp_path / "checkpoints" / "checkpoint.pth", weights_only=True)
    assert list(state["optimizer"]) == ["generator", "discriminator"]
    assert {name.partition(".")[0] for name in state["model"]} == {"generator", "discriminator"}

    class Renamed(Turns):
        def register_optimizer(self, optimizer, name=None, **limits):
            super().register_optimizer(optimizer, name.upper(), **limits)

    with pytest.raises(CheckpointError, match="has generator, discriminator, but the script has registered GENERATOR"):
        Renamed(settings(tmp_path, resume=True, max_epoch=2)).run()


def test_weights_of_a_single_network_load_into_one_of_several(tmp_path):
    single = networks()["generator"]
    with torch.no_grad():
        single[0].bias.fill_(7)
    torch.save({"state_dict": single.state_dict()}, tmp_path / "generator.pth")
    trainer = Turns(settings(tmp_path / "run"))
    trainer.load_weights(tmp_path / "generator.pth", rename={"": "generator."})
    assert torch.equal(trainer.model["generator"][0].bias, single[0].bias)


@pytest.mark.parametrize("style", ["turns", "by_name", "critic", "joint"])
@pytest.mark.parametrize("stop_at", [(1, 3), (2, 1), (2, 6)])
def test_a_stop_at_any_step_changes_no_bit(style, stop_at, tmp_path):
    class Broken(Turns):
        def before_train_step(self, epoch, iteration, data_dict):
            if (epoch, iteration) == stop_at:
                raise KeyboardInterrupt

    window = 1 if style == "critic" else 2
    options = {"max_epoch": 2, "grad_acc_steps": window, "save_every": "1 iteration", "precision": "fp16"}
    whole = Turns(settings(tmp_path / "whole", **options), style=style)
    whole.run()
    with pytest.raises(KeyboardInterrupt):
        Broken(settings(tmp_path / "broken", **options), style=style).run()
    resumed = Turns(settings(tmp_path / "broken", **options, resume=True), style=style)
    resumed.run()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name


@pytest.mark.parametrize("weights", [(1, 3), (3, 1)])
def test_own_losses_may_weigh_differently_whatever_the_first_weighs(weights, tmp_path):
    class Weighted(Turns):
        def train_step(self, epoch, iteration, data_dict):
            self.update("discriminator", loss_d(self.model, data_dict), weight=weights[(iteration - 1) % 2])
            return {}, {"loss": loss_d(self.model, data_dict).detach()}

    trainer = Weighted(settings(tmp_path, grad_acc_steps=2), 4, kind=torch.optim.SGD)
    trainer.run()
    models, batches = networks(), [Clouds(4)[[0, 1]], Clouds(4)[[2, 3]]]
    loss = sum(weight * loss_d(models, batch) for weight, batch in zip(weights, batches, strict=True)) / 4
    loss.backward()
    expected = [p - 0.05 * p.grad for p in models["discriminator"].parameters()]
    for found, value in zip(trainer.model["discriminator"].parameters(), expected, strict=True):
        assert (found - value).abs().max() <= 1e-12


def test_weights_must_be_given_always_or_never(tmp_path):
    def mixed(self, epoch, iteration, data_dict):
        more = {"weight": 2} if iteration == 2 else {}
        self.update("discriminator", loss_d(self.model, data_dict), **more)
        return {}, {"loss": loss_g(self.model, data_dict)}

    assert "give weight= in all calls, or in none" in errors_of(tmp_path, mixed)


@pytest.mark.parametrize("stop_at", [None, (1, 3)])
def test_an_update_of_early_batches_of_a_window_is_made_at_its_end(stop_at, tmp_path):
    class Early(Turns):
        def train_step(self, epoch, iteration, data_dict):
            if (epoch, iteration) == self.stop_at:
                raise KeyboardInterrupt
            if iteration % 2:
                self.update("discriminator", loss_d(self.model, data_dict))
            return {}, {"loss": loss_d(self.model, data_dict).detach()}

    Early.stop_at = stop_at
    options = {"grad_acc_steps": 2, "save_every": "1 iteration"}
    if stop_at is not None:
        with pytest.raises(KeyboardInterrupt):
            Early(settings(tmp_path, **options), 8, kind=torch.optim.SGD).run()
        Early.stop_at = None
    trainer = Early(settings(tmp_path, **options, resume=stop_at is not None), 8, kind=torch.optim.SGD)
    trainer.run()
    models = networks()
    optimizer = torch.optim.SGD(models["discriminator"].parameters(), lr=0.05)
    for first in (0, 4):
        optimizer.zero_grad()
        loss_d(models, Clouds(8)[[first, first + 1]]).backward()
        optimizer.step()
    expected = [parameter for model in models.values() for parameter in model.parameters()]
    for found, value in zip(trainer.model.parameters(), expected, strict=True):
        assert (found - value).abs().max() <= 1e-12


def test_a_frozen_network_takes_no_turn(tmp_path):
    class Frozen(Turns):
        def before_train_epoch(self, epoch):
            self.model["generator"].requires_grad_(False)

    trainer = Frozen(settings(tmp_path))
    trainer.run()
    before = networks()
    assert torch.equal(trainer.model["generator"][0].weight, before["generator"][0].weight)
    assert not torch.equal(trainer.model["discriminator"][0].weight, before["discriminator"][0].weight)

    def of_frozen(self, epoch, iteration, data_dict):
        self.model["discriminator"].requires_grad_(False)
        self.update("discriminator", loss_g(self.model, data_dict))

    assert "no parameter of this optimizer requires grad" in errors_of(tmp_path / "named", of_frozen)


def test_an_average_does_not_follow_windows_without_weight(tmp_path):
    class Void(Turns):
        def train_step(self, epoch, iteration, data_dict):
            weight = 1 if iteration < 3 else 0
            self.update("discriminator", loss_d(self.model, data_dict), weight=weight)
            return {}, {"loss": loss_d(self.model, data_dict).detach()}

    Void(settings(tmp_path, ema_decay=0.9)).run()
    saved = torch.load(tmp_path / "checkpoints" / "checkpoint.pth", weights_only=True)
    assert saved["ema"]["updates"] == 2


def test_a_run_goes_on_after_an_exception_between_two_turns_in_16_bits(tmp_path):
    class Failing(Turns):
        failed = False

        def train_step(self, epoch, iteration, data_dict):
            self.update("discriminator", loss_d(self.model, data_dict))
            if iteration == 3 and not self.failed:
                self.failed = True
                raise KeyError("once")
            return {}, {"loss": loss_g(self.model, data_dict)}

    trainer = Failing(settings(tmp_path, precision="fp16"))
    with pytest.raises(KeyError):
        trainer.run()
    trainer.run()
    assert trainer.total_steps == 6
