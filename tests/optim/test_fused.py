"""Torch's fused kernels where they fit, and gradients cleared as the optimizer's own method does."""

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.toys import ToyEpochTrainer, rows_loader, settings
from vision3d_engine.optim.optimizer import prefer_fused
from vision3d_engine.update.held import clear_gradients


def parameters(*dtypes):
    return [nn.Parameter(torch.ones(3, dtype=dtype), dtype.is_floating_point) for dtype in dtypes or (torch.float32,)]


def fused_of(optimizer):
    return [group.get("fused") for group in optimizer.param_groups]


def stepped(optimizer, steps=3):
    """Make steps with fixed gradients and return the parameters."""
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number in range(steps):
        for parameter in held:
            parameter.grad = torch.full_like(parameter, 0.1 * (number + 1))
        optimizer.step()
    return held


FUSED = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "weight_decay": 0.1}),
    ("SGD", {"lr": torch.tensor(0.1)}),
    ("Adam", {"lr": 0.1, "amsgrad": True}),
    ("AdamW", {"lr": 0.1, "maximize": True}),
    ("AdamW", {"lr": torch.tensor(0.1)}),
    ("Adagrad", {"lr": 0.1, "lr_decay": 0.1}),
]


@pytest.mark.parametrize(("kind", "options"), FUSED)
def test_optimizers_of_torch_get_their_fused_kernels_and_the_same_numbers_to_rounding(kind, options):
    """The reference are torch's own other kernels; three steps in float32."""
    preferred, plain = (getattr(torch.optim, kind)(parameters(), **options) for _ in range(2))
    assert prefer_fused(preferred)
    assert fused_of(preferred) == [True]
    torch.testing.assert_close(stepped(preferred), stepped(plain), rtol=1e-5, atol=1e-6)


def test_every_group_and_every_floating_type_gets_them():
    held = parameters(torch.float32, torch.float64, torch.bfloat16)
    optimizer = torch.optim.AdamW([{"params": held[:2]}, {"params": held[2:], "lr": 0.5}], lr=0.1)
    assert prefer_fused(optimizer)
    assert fused_of(optimizer) == [True, True]
    assert all(bool((parameter != 1).all()) for parameter in stepped(optimizer))


@pytest.mark.parametrize(
    "choice",
    [{"fused": False}, {"foreach": False}, {"foreach": True}, {"fused": True}, {"differentiable": True}],
)
@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
def test_the_users_choice_of_a_kernel_stays(kind, choice):
    optimizer = getattr(torch.optim, kind)(parameters(), lr=0.1, **choice)
    before = [dict(group) for group in optimizer.param_groups]
    assert not prefer_fused(optimizer)
    assert [dict(group) for group in optimizer.param_groups] == before


def test_a_choice_for_one_group_stays_for_all():
    first, second = parameters(torch.float32, torch.float32)
    optimizer = torch.optim.SGD([{"params": [first]}, {"params": [second], "foreach": False}], lr=0.1)
    assert not prefer_fused(optimizer)
    assert fused_of(optimizer) == [None, None]


class Own(torch.optim.SGD):
    """An optimizer of a user's."""


class Duck:
    """Looks like an optimizer."""

    param_groups = ()


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.optim.LBFGS(parameters()),
        lambda: torch.optim.RMSprop(parameters()),
        lambda: torch.optim.SparseAdam(parameters()),
        lambda: Own(parameters(), lr=0.1),
        lambda: torch.optim.SGD(parameters(torch.float32, torch.int64), lr=0.1),
        lambda: torch.optim.SGD(parameters(torch.float32, torch.complex64), lr=0.1),
        lambda: torch.optim.SGD([torch.ones(3, requires_grad=True)], lr=0.1),
        Duck,
    ],
    ids=["LBFGS", "RMSprop", "SparseAdam", "own class", "integers", "complex", "plain tensor", "duck"],
)
def test_what_has_no_fused_kernels_or_might_not_stays_as_it_is(make):
    optimizer = make()
    before = [dict(group) for group in optimizer.param_groups]
    assert not prefer_fused(optimizer)
    assert [dict(group) for group in optimizer.param_groups] == before


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.Adagrad])
def test_an_optimizer_that_has_made_a_step_stays_as_it_is(kind):
    optimizer = kind(parameters(), lr=0.1)
    stepped(optimizer, 1)
    assert not prefer_fused(optimizer)
    assert fused_of(optimizer) == [None]


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_sparse_gradients_keep_the_kernels_that_take_them(kind):
    model = nn.Sequential(kind(4, 2, sparse=True), nn.Linear(2, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert not prefer_fused(optimizer, model)
    model(torch.tensor([[1, 2]])).sum().backward()
    optimizer.step()


def test_trying_the_kernels_leaves_no_trace_in_the_random_numbers():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    prefer_fused(torch.optim.AdamW(parameters(), lr=0.1))
    assert torch.equal(torch.rand(2), expected)


# ------------------------------------------------------------------------------------------- in a run


class Adam(ToyEpochTrainer):
    """Trains by AdamW, whose fused kernels differ from the others in the last bits."""

    def _register(self, train_loader, val_loader, lr):
        super()._register(train_loader, val_loader, lr)
        self.optimizer = None  # the one of the class above
        self.register_optimizer(torch.optim.AdamW(self.model.parameters(), lr=0.01))
        self.register_scheduler(None)


def trained(folder, **trainer):
    toy = Adam(settings(folder, **trainer), rows_loader(20))
    toy.run()
    return toy


def same_weights(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True))


def test_a_run_uses_them_unless_the_setting_says_no(tmp_path):
    fused, plain = trained(tmp_path / "fused"), trained(tmp_path / "plain", fused_optimizer=False)
    assert fused_of(fused.optimizer) == [True]
    assert fused_of(plain.optimizer) == [None]
    assert "optimizer: fused kernels" in Path(fused.log_file).read_text()
    assert "fused kernels" not in Path(plain.log_file).read_text()
    for one, other in zip(fused.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)  # float64, 10 steps


@pytest.mark.parametrize("was_fused", [True, False])
def test_a_resumed_run_goes_on_with_the_kernels_that_it_began_with_to_the_same_bits(was_fused, tmp_path):
    straight = trained(tmp_path / "straight", max_epoch=4, fused_optimizer=was_fused)
    trained(tmp_path / "broken", max_epoch=2, fused_optimizer=was_fused)
    resumed = trained(tmp_path / "broken", max_epoch=4, resume=True)
    assert bool(fused_of(resumed.optimizer)[0]) is was_fused
    assert same_weights(resumed, straight)
    steps = [state["step"] for state in resumed.optimizer.state.values()]
    assert [float(step) for step in steps] == [40, 40]


# ------------------------------------------------------------------------------------------- clearing gradients


def test_all_gradients_of_all_groups_become_none_and_parameters_without_one_do_no_harm():
    first, second, third = parameters(*[torch.float32] * 3)
    optimizer = torch.optim.SGD([{"params": [first]}, {"params": [second, third]}], lr=0.1)
    first.grad, second.grad = torch.ones(3), torch.ones(3)
    clear_gradients(optimizer)
    assert (first.grad, second.grad, third.grad) == (None, None, None)


def test_a_zero_grad_of_a_users_class_is_called():
    class Counts(torch.optim.SGD):
        calls = 0

        def zero_grad(self, set_to_none=True):
            self.calls += 1
            super().zero_grad(set_to_none)

    optimizer = Counts(parameters(), lr=0.1)
    optimizer.param_groups[0]["params"][0].grad = torch.ones(3)
    clear_gradients(optimizer)
    assert optimizer.calls == 1
    assert optimizer.param_groups[0]["params"][0].grad is None


def test_a_zero_grad_that_was_put_on_the_object_is_called():
    optimizer = torch.optim.SGD(parameters(), lr=0.1)
    calls = []
    optimizer.zero_grad = lambda set_to_none=True: calls.append(set_to_none)
    clear_gradients(optimizer)
    assert calls == [True]


def test_an_optimizer_that_only_looks_like_one_is_asked_to_clear_its_gradients():
    class Wraps:
        def __init__(self):
            self.cleared = 0

        def zero_grad(self, set_to_none=False):
            self.cleared += 1

    optimizer = Wraps()
    clear_gradients(optimizer)
    assert optimizer.cleared == 1


def test_sgd_with_momentum_keeps_kernels_that_bear_a_gradient_which_comes_later(tmp_path):
    """Torch's fused one needs the gradients of all parameters from the first step on."""

    class Unfreezes(ToyEpochTrainer):
        def before_train_epoch(self, epoch):
            super().before_train_epoch(epoch)
            self.model.bias.requires_grad_(epoch > 1)

    toy = Unfreezes(settings(tmp_path, max_epoch=2))
    toy.optimizer = toy.scheduler = None
    toy.register_optimizer(torch.optim.SGD(toy.model.parameters(), lr=0.1, momentum=0.9))
    toy.run()
    assert fused_of(toy.optimizer) == [None]
    assert bool(toy.model.bias != 0)
