"""Accumulated updates against the one big batch, computed by a hand-written loop."""

import tempfile

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.toys import Rows, ToyEpochTrainer, ToyIterTrainer, linear_model, rows_loader, settings
from vision3d_engine import ResultError


def gradients_of_updates(kind, folder, loader, **trainer):
    """Return the gradient (weight and bias in one vector) of every update of one epoch."""
    found = []

    class Recorder(kind):
        def optimizer_step(self):
            found.append(torch.cat([p.grad.flatten().clone() for p in self.model.parameters()]))
            super().optimizer_step()

    Recorder(settings(folder, **trainer), loader, lr=0.0).run()  # every update starts from the same weights
    return found


def big_batch_gradient(indices, reduce=torch.mean):
    """The reference: one plain backward pass over all samples at once."""
    model, rows = linear_model(), Rows(64)
    loss = reduce((model(rows.x[indices])[:, 0] - rows.y[indices]).square())
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("kind", [ToyEpochTrainer, ToyIterTrainer])
def test_an_accumulated_update_has_the_gradient_of_the_one_big_batch(kind, tmp_path):
    loader = rows_loader(24, batch_size=4)
    found = gradients_of_updates(kind, tmp_path, loader, grad_acc_steps=3)
    expected = [big_batch_gradient(range(12)), big_batch_gradient(range(12, 24))]
    assert len(found) == 2
    for got, wanted in zip(found, expected, strict=True):
        assert (got - wanted).abs().max() <= 1e-12


def test_the_incomplete_last_window_is_stepped_with_its_true_weight(tmp_path):
    loader = rows_loader(20, batch_size=4)  # 5 batches, windows of 3 and 2
    found = gradients_of_updates(ToyEpochTrainer, tmp_path, loader, grad_acc_steps=3)
    assert len(found) == 2
    assert (found[1] - big_batch_gradient(range(12, 20))).abs().max() <= 1e-12


def test_the_incomplete_last_window_of_a_loader_without_a_length_is_stepped_too(tmp_path):
    found = gradients_of_updates(ToyEpochTrainer, tmp_path, _Stream(20, 4), grad_acc_steps=3)
    assert (found[1] - big_batch_gradient(range(12, 20))).abs().max() <= 1e-12


def test_the_reduction_sum_adds_the_gradients_up(tmp_path):
    loader = rows_loader(8, batch_size=4)
    found = gradients_of_updates(ToyEpochTrainer, tmp_path, loader, grad_acc_steps=2, grad_acc_reduction="sum")
    expected = big_batch_gradient(range(4)) + big_batch_gradient(range(4, 8))
    assert (found[0] - expected).abs().max() <= 1e-12


def test_after_backward_sees_the_gradient_of_the_update(tmp_path):
    found = []

    class Look(ToyEpochTrainer):
        def after_backward(self, epoch, iteration, data_dict, output_dict, result_dict):
            found.append(self.model.bias.grad.clone())

    Look(settings(tmp_path, grad_acc_steps=2), rows_loader(8, batch_size=4)).run()
    assert (found[1] - big_batch_gradient(range(8))[3:]).abs().max() <= 1e-12


class _Stream:
    """Batches without a length, of one size or of given sizes."""

    def __init__(self, count, sizes):
        self.rows = Rows(64)
        self.sizes = [sizes] * (count // sizes) if isinstance(sizes, int) else sizes

    def __iter__(self):
        start = 0
        for size in self.sizes:
            yield {"x": self.rows.x[start : start + size], "y": self.rows.y[start : start + size]}
            start += size


@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=8), steps=st.integers(1, 4))
def test_with_a_loss_weight_any_split_into_unequal_batches_gives_the_gradient_of_the_big_batch(
    sizes, steps, tmp_path_factory
):
    class Weighted(ToyEpochTrainer):
        def loss_weight(self, data_dict, output_dict, result_dict):
            return len(data_dict["y"])

    folder = tmp_path_factory.mktemp("run")
    found = gradients_of_updates(Weighted, folder, _Stream(0, sizes), grad_acc_steps=steps)
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    for number, got in enumerate(found):
        window = range(number * steps, min((number + 1) * steps, len(sizes)))
        indices = range(starts[window[0]], starts[window[-1]] + sizes[window[-1]])
        assert (got - big_batch_gradient(indices)).abs().max() <= 1e-12
    assert len(found) == -(-len(sizes) // steps)


def test_a_loss_weight_may_be_a_tensor_on_the_device(tmp_path):
    class Weighted(ToyEpochTrainer):
        def loss_weight(self, data_dict, output_dict, result_dict):
            return torch.tensor(float(len(data_dict["y"])))

    found = gradients_of_updates(Weighted, tmp_path, _Stream(0, [1, 5]), grad_acc_steps=2)
    assert (found[0] - big_batch_gradient(range(6))).abs().max() <= 1e-12


NAN = float("nan")


class Weighing(ToyEpochTrainer):
    """The weight of each batch is that of a list, and the loss NaN where it is zero, as of a mean over nothing."""

    weights, on_device = (), False

    def train_step(self, epoch, iteration, data_dict):
        output_dict, result_dict = super().train_step(epoch, iteration, data_dict)
        factor = 1.0 if self.weights[iteration - 1] else NAN
        return output_dict, {"loss": result_dict["loss"] * factor}

    def loss_weight(self, data_dict, output_dict, result_dict):
        weight = self.weights[self.iteration - 1]
        return torch.tensor(weight) if self.on_device else weight

    def optimizer_step(self):
        self.found.append([parameter.grad.clone() for parameter in self.model.parameters()])
        super().optimizer_step()


def weighed(folder, weights, *, on_device=False, steps=2, momentum=0.9, **trainer):
    """Return the trainer after one epoch of batches of four with these weights."""

    class Trainer(Weighing):
        def __init__(self, cfg, loader):
            super().__init__(cfg, loader)
            self.found, self.hooked = [], []
            self.optimizer = None  # the one of the class above
            self.register_optimizer(torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=momentum))
            self.register_scheduler(None)

        def after_backward(self, epoch, iteration, data_dict, output_dict, result_dict):
            gradient = self.model.bias.grad  # none before a batch of the window has weight
            self.hooked.append(None if gradient is None else gradient.clone())

    Trainer.weights, Trainer.on_device = weights, on_device
    cfg = settings(folder, grad_acc_steps=steps, nonfinite="ignore", **trainer)
    engine = Trainer(cfg, rows_loader(4 * len(weights), batch_size=4))
    engine.run()
    return engine


def weighed_by_hand(weights, steps=2, momentum=0.9):
    """The reference: a window without weight makes no step, a batch without weight is left out."""
    model, rows = linear_model(), Rows(64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=momentum)
    for start in range(0, len(weights), steps):
        numbers = [n for n in range(start, min(start + steps, len(weights))) if weights[n]]
        total = sum(weights[n] for n in numbers)
        for n in numbers:
            x, y = rows.x[4 * n : 4 * n + 4], rows.y[4 * n : 4 * n + 4]
            ((model(x)[:, 0] - y).square().mean() * (weights[n] / total)).backward()
        if numbers:
            optimizer.step()
            optimizer.zero_grad()
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def flat(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@given(st.lists(st.integers(0, 3), min_size=1, max_size=7), st.integers(1, 3))
def test_a_window_without_weight_makes_no_step_and_disturbs_no_other_one(weights, steps):
    """Against a loop by hand, with momentum, to 1e-12; also where a loss without weight is NaN."""
    with tempfile.TemporaryDirectory() as folder:
        engine = weighed(folder, weights, steps=steps)
    assert (flat(engine.model) - weighed_by_hand(weights, steps)).abs().max() <= 1e-12


def test_where_weights_are_on_the_device_a_window_without_one_has_gradients_of_exact_zeros(tmp_path):
    engine = weighed(tmp_path, [2, 1, 0, 0, 3, 1], on_device=True, momentum=0)
    assert len(engine.found) == 3
    assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in engine.found[1])
    assert (flat(engine.model) - weighed_by_hand([2, 1, 0, 0, 3, 1], momentum=0)).abs().max() <= 1e-12


@pytest.mark.parametrize("on_device", [False, True])
def test_a_unit_of_weights_that_is_a_power_of_two_changes_no_bit_and_after_a_window_no_gradient_in_a_hook(
    tmp_path, on_device
):
    weights = [3, 1, 2, 5, 4, 4]
    engines = [weighed(tmp_path / str(unit), [w * unit for w in weights], on_device=on_device) for unit in (1, 4096)]
    assert torch.equal(flat(engines[0].model), flat(engines[1].model))
    first, second = (engine.hooked for engine in engines)
    assert torch.equal(first[2], second[2])
    assert torch.equal(second[0], 4096 * first[0]), "before anything is known of the unit"


def test_the_scale_of_weights_is_saved(tmp_path):
    weights = [300.0, 100.0, 200.0, 500.0]
    engine = weighed(tmp_path, weights, on_device=True)
    saved = torch.load(tmp_path / "checkpoints" / "checkpoint.pth", weights_only=True)
    assert engine._progress.weight_scale == saved["progress"]["weight_scale"] == 2**-9


def test_a_batch_without_weight_gives_no_gradient_to_what_no_loss_reaches(tmp_path):
    """Weight decay would move it."""

    class Unused(Weighing):
        weights = (1, 0, 2)

        def __init__(self, cfg, loader):
            super().__init__(cfg, loader)
            self.found, self.optimizer = [], None
            self.model.register_parameter("spare", torch.nn.Parameter(torch.ones(2, dtype=torch.float64)))
            self.register_optimizer(torch.optim.AdamW(self.model.parameters(), lr=0.1, weight_decay=0.5))
            self.register_scheduler(None)

        def optimizer_step(self):
            super(Weighing, self).optimizer_step()

    engine = Unused(settings(tmp_path, nonfinite="ignore"), rows_loader(12, batch_size=4))
    engine.run()
    assert engine.model.spare.tolist() == [1, 1]


@pytest.mark.parametrize("weight", [None, "many", torch.ones(3), [1, 2]])
def test_a_weight_that_is_not_one_number_is_named(tmp_path, weight):
    class Trainer(ToyEpochTrainer):
        def loss_weight(self, data_dict, output_dict, result_dict):
            return weight

    with pytest.raises(ResultError, match=r"loss_weight returned .*; it must be one number"):
        Trainer(settings(tmp_path), rows_loader(8)).run()


def test_training_equals_a_hand_written_loop_bit_for_bit(tmp_path):
    toy = ToyEpochTrainer(settings(tmp_path, max_epoch=3), rows_loader(12, batch_size=4))
    toy.run()
    model = linear_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        for batch in rows_loader(12, batch_size=4):
            optimizer.zero_grad()
            (model(batch["x"])[:, 0] - batch["y"]).square().mean().backward()
            optimizer.step()
    assert torch.equal(toy.model.weight, model.weight)
    assert torch.equal(toy.model.bias, model.bias)


def test_parameters_that_only_the_optimizer_knows_are_averaged_too(tmp_path):
    class WithLossParameter(ToyEpochTrainer):
        def __init__(self, cfg, loader):
            super().__init__(cfg, loader)
            self.register_scheduler(None)
            self.temperature = torch.nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
            self.optimizer = None
            self.register_optimizer(torch.optim.SGD([*self.model.parameters(), self.temperature], lr=0.1))
            self.found = []

        def train_step(self, epoch, iteration, data_dict):
            output_dict, result_dict = super().train_step(epoch, iteration, data_dict)
            result_dict["loss"] = result_dict["loss"] * 0 + self.temperature * 3
            return output_dict, result_dict

        def optimizer_step(self):
            self.found.append(self.temperature.grad.item())
            super().optimizer_step()

    toy = WithLossParameter(settings(tmp_path, grad_acc_steps=2), rows_loader(8, batch_size=2))
    toy.run()
    assert toy.found == [3.0, 3.0]


def test_a_batch_without_weight_on_the_host_is_left_out_among_weights_on_the_device(tmp_path):
    class Mixed(ToyEpochTrainer):
        def train_step(self, epoch, iteration, data_dict):
            output_dict, result_dict = super().train_step(epoch, iteration, data_dict)
            scale = float("nan") if iteration % 2 == 0 else 1.0
            return output_dict, {"loss": result_dict["loss"] * scale}

        def loss_weight(self, data_dict, output_dict, result_dict):
            return torch.tensor(4.0) if self.iteration % 2 else 0

        def metric_weight(self, data_dict, output_dict, result_dict):
            return self.iteration % 2

    trainer = Mixed(settings(tmp_path, grad_acc_steps=2), rows_loader(16))
    trainer.run()
    assert trainer.model.weight.isfinite().all()
