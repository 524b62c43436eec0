"""What modules return in captured steps, beside hooks made by hand; and that nothing is left of it between them."""

import gc
import json
import weakref

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.toys import ToyEpochTrainer, settings
from vision3d_engine import EpochBasedTrainer, MetricWriter, RegistrationError, SkipBatch
from vision3d_engine.demo.network import ShapeClassifier


class ByHand:
    """Forward hooks of a script's own on all modules, as one writes them without the engine."""

    def __init__(self, model):
        self.outputs = {}
        for name, module in model.named_modules():
            if name:
                module.register_forward_hook(lambda _module, _inputs, output, name=name: self.keep(name, output))

    def keep(self, name, output):
        output.retain_grad()
        self.outputs[name] = output


class DemoNetwork(EpochBasedTrainer):
    """The demo's network on random clouds; compares what is captured with hooks made by hand, in every step."""

    def __init__(self, folder, pattern="*", every=1, **trainer):
        super().__init__(settings(folder, val_every="never", **trainer))
        torch.manual_seed(0)
        batches = [{"points": torch.randn(4, 32, 3), "label": torch.arange(4)} for _ in range(4)]
        self.register_loader(batches)
        model = self.register_model(ShapeClassifier(k=4))
        self.register_optimizer(torch.optim.SGD(model.parameters(), lr=0.01))
        self.by_hand, self.seen = ByHand(model), []
        self.handle = self.capture(pattern, every)

    def train_step(self, epoch, iteration, data_dict):
        return {}, {"loss": nn.functional.cross_entropy(self.model(data_dict["points"]), data_dict["label"])}

    def after_backward(self, epoch, iteration, data_dict, output_dict, result_dict):
        self.seen.append(sorted(self.endpoints.data_keys))
        for name in self.endpoints.data_keys:
            found, own = self.endpoints.get(full_name=name), self.by_hand.outputs[name]
            assert found is own
            assert found.grad is not None


class Unscaled(DemoNetwork):
    """Also computes the gradients of the loss itself by torch's own function, in a graph that is kept."""

    scale = 1.0

    def train_step(self, epoch, iteration, data_dict):
        output_dict, result_dict = super().train_step(epoch, iteration, data_dict)
        tensors, scale = list(self.by_hand.outputs.values()), self.scale
        gradients = torch.autograd.grad(result_dict["loss"] * scale, tensors, retain_graph=True)
        exact = [(each.float() / scale).to(each.dtype) for each in gradients]
        self.expected = dict(zip(self.by_hand.outputs, exact, strict=True))
        for each in tensors:
            each.grad = None  # retained of this pass too
        return output_dict, result_dict

    def after_backward(self, *args):
        super().after_backward(*args)
        assert self.endpoints.data_keys
        for name in self.endpoints.data_keys:
            assert torch.equal(self.endpoints.get(full_name=name).grad, self.expected[name]), name


class Scaled(Unscaled):
    scale = 2.0**16  # torch's first one; numbers of fp16 below 1e-7 are lost without


class Weighted(Unscaled):
    def loss_weight(self, data_dict, output_dict, result_dict):
        return 4


class Backwards(Unscaled):
    def backward(self, loss, inputs=None):
        super().backward(loss * 8, inputs)


CASES = {
    "plain": (Unscaled, {}),
    "windows": (Unscaled, {"grad_acc_steps": 3}),
    "bf16": (Unscaled, {"precision": "bf16"}),
    "fp16": (Scaled, {"precision": "fp16"}),
    "weighted windows": (Weighted, {"grad_acc_steps": 3}),
    "a backward of its own": (Backwards, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_captured_gradients_are_those_of_the_loss_itself_to_the_last_bit(case, tmp_path):
    kind, trainer = CASES[case]
    torch.set_num_threads(1)
    kind(tmp_path, **trainer).run()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_what_a_script_registers_has_the_gradient_of_the_loss_itself_too(tmp_path, precision):
    class Registers(ToyEpochTrainer):
        def train_step(self, epoch, iteration, data_dict):
            output_dict, result_dict = super().train_step(epoch, iteration, data_dict)
            self.endpoints.register("error", {"nested": output_dict["error"]})
            self.endpoints.register("loss", result_dict["loss"])
            return output_dict, {"loss": result_dict["loss"] * 1}

        def after_backward(self, epoch, iteration, data_dict, output_dict, result_dict):
            assert torch.equal(self.endpoints.get("error")["nested"].grad, output_dict["error"].detach() * 2 / 2)
            assert self.endpoints.get("loss").grad == 1
            gradients.append(1)

        def loss_weight(self, data_dict, output_dict, result_dict):
            return 2

    gradients = []
    Registers(settings(tmp_path, precision=precision)).run()
    assert len(gradients) == 3


def test_only_the_steps_that_are_due_are_captured_and_other_steps_have_no_hooks(tmp_path):
    class Counts(DemoNetwork):
        def train_step(self, *args):
            hooks.append(len(self.model.head[0]._forward_hooks) - 1)  # one is made by hand
            return super().train_step(*args)

        def after_train_step(self, *_args):
            assert len(self.model.head[0]._forward_hooks) == 1

    hooks = []
    trainer = Counts(tmp_path, "head.*", every=3, max_epoch=2)
    trainer.run()
    names = ["head.0", "head.1", "head.2", "head.3"]
    assert trainer.seen == [[], [], names, [], [], names, [], []]
    assert hooks == [0, 0, 1, 0, 0, 1, 0, 0]


def test_modules_are_also_meant_by_their_type(tmp_path):
    trainer = DemoNetwork(tmp_path, nn.Dropout)
    trainer.run()
    assert trainer.seen == [["head.2"]] * 4


def test_what_is_captured_may_begin_and_end_in_the_midst_of_an_epoch(tmp_path):
    class Changes(DemoNetwork):
        def after_train_step(self, epoch, iteration, data_dict, output_dict, result_dict):
            if iteration == 1:
                self.handle.remove()
            if iteration == 2:
                self.capture("edge.0", every=1)

    trainer = Changes(tmp_path, "head.2")
    trainer.run()
    assert trainer.seen == [["head.2"], [], ["edge.0"], ["edge.0"]]


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ("heads.0", r"capture\('heads.0'\) matches no module of the model; did you mean 'head.0'\?"),
        (nn.LayerNorm, r"capture\(LayerNorm\) matches no module.*\(it has: BatchNorm1d, Dropout, Linear, ReLU, Seq"),
        (3, "capture got 3"),
    ],
)
def test_modules_that_are_not_there_are_an_error_with_the_nearest(tmp_path, modules, message):
    with pytest.raises(RegistrationError, match=message):
        DemoNetwork(tmp_path, modules)


@pytest.mark.parametrize("every", [0, 1.5])
def test_every_is_a_number_of_batches(tmp_path, every):
    with pytest.raises(RegistrationError, match="number of training batches"):
        DemoNetwork(tmp_path, "*", every)


def test_a_model_comes_first(tmp_path):
    trainer = ToyEpochTrainer(settings(tmp_path))
    trainer.model = None
    with pytest.raises(RegistrationError, match="register_model"):
        trainer.capture("*")


# --------------------------------------------------------------------------------------------- other ways of a model


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.last = nn.Sequential(nn.Linear(3, 3), nn.Tanh()), nn.Linear(3, 1)

    def forward(self, x):
        return self.last(self.inner(x))


class Checkpointed(Net):
    reentrant = False
    calls = 0

    def _count(self, x):
        self.calls += 1
        return self.inner(x)

    def forward(self, x):
        return self.last(checkpoint(self._count, x.requires_grad_(), use_reentrant=self.reentrant))


class Toy(ToyEpochTrainer):
    """A toy with a model of its own."""

    network = Net

    def _register(self, *args):
        super()._register(*args)
        self.model = None
        torch.manual_seed(1)
        model = self.register_model(self.network().double())
        self.optimizer = self.scheduler = None
        self.register_optimizer(torch.optim.SGD(model.parameters(), lr=0.1))
        self.seen = []

    def after_backward(self, *_args):
        self.seen.append({name: value.clone() for name, value in self.endpoints.data_dict.items()})
        self.seen[-1] |= {f"{name}.grad": each.grad.clone() for name, each in self.endpoints.data_dict.items()}


def run_toy(folder, network=Net, pattern="inner*", **trainer):
    toy = type("Own", (Toy,), {"network": network})(settings(folder, **trainer))
    toy.capture(pattern, every=1)
    toy.run()
    return toy


def assert_same(found, expected):
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_forward_pass_that_is_repeated_for_activation_checkpointing_is_captured_once(tmp_path):
    plain, repeated = run_toy(tmp_path / "a"), run_toy(tmp_path / "b", Checkpointed, val_every="never")
    assert repeated.model.calls == 6, "two a step"
    assert_same(repeated.seen, plain.seen)


@pytest.mark.parametrize("reentrant", [False, True])
def test_what_a_repeated_forward_pass_registers_is_the_tensor_with_the_gradient(tmp_path, reentrant):
    class Registers(Checkpointed):
        def _count(self, x):
            found = super()._count(x)
            owner[0].endpoints.register("found", found)
            return found

    class Looks(Toy):
        network = Registers

        def after_backward(self, *_args):
            assert self.endpoints.data_keys == ["found"]
            self.seen.append(self.endpoints.get("found").grad.clone())

    Registers.reentrant = reentrant
    owner = []
    toy = Looks(settings(tmp_path))
    owner.append(toy)
    toy.run()
    expected = run_toy(tmp_path / "plain", pattern="inner")
    for found, other in zip(toy.seen, expected.seen, strict=True):
        assert torch.equal(found, other["inner.grad"])


def test_names_of_compiled_parts_are_those_of_the_model(tmp_path):
    class Compiled(Net):
        def __init__(self):
            super().__init__()
            self.inner = torch.compile(self.inner, backend="eager")

    assert_same(run_toy(tmp_path / "a", Compiled).seen, run_toy(tmp_path / "b").seen)


def test_a_module_that_is_called_again_has_a_number(tmp_path):
    class Twice(Net):
        def forward(self, x):
            return super().forward(x) + super().forward(x * 2)

    toy = run_toy(tmp_path, Twice, "inner.0")
    assert sorted(toy.seen[0]) == ["inner.0", "inner.0#2", "inner.0#2.grad", "inner.0.grad"]


def test_nests_of_tensors_are_captured_as_they_are(tmp_path):
    class Inner(nn.Linear):
        def forward(self, x):
            return {"features": [super().forward(x)], "size": 3}

    class Nested(Net):
        def __init__(self):
            super().__init__()
            self.inner = Inner(3, 3)

        def forward(self, x):
            return self.last(self.inner(x)["features"][0])

    class Looks(Toy):
        network = Nested

        def after_backward(self, *_args):
            self.seen.append(self.endpoints.get("inner"))
            assert self.seen[-1]["features"][0].grad is not None

    toy = Looks(settings(tmp_path, log_steps=1))
    toy.capture("inner", every=1)
    toy.run()
    assert len(toy.seen) == 3
    values = rows_of(tmp_path, "endpoints")[0]["values"]
    assert "inner['features'][0]/mean" in values
    assert "inner['features'][0]/grad/std" in values


def test_a_batch_that_is_left_out_leaves_no_hook_behind(tmp_path):
    class Skips(DemoNetwork):
        def train_step(self, epoch, iteration, data_dict):
            returned = super().train_step(epoch, iteration, data_dict)
            if iteration == 2:
                raise SkipBatch("too hard")
            return returned

    trainer = Skips(tmp_path, "head.0")
    trainer.run()
    assert trainer.seen == [["head.0"]] * 3
    assert len(trainer.model.head[0]._forward_hooks) == 1


# --------------------------------------------------------------------------------------------- figures


def rows_of(folder, phase):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["phase"] == phase]


def test_statistics_of_the_latest_captured_step_are_on_the_next_log_line_and_go_to_the_writers(tmp_path):
    class Keeps(DemoNetwork):
        def after_backward(self, *args):
            super().after_backward(*args)
            for name in self.endpoints.data_keys:
                kept[self.total_steps, name] = self.endpoints.get(full_name=name)

    kept = {}
    trainer = Keeps(tmp_path, "head.1", every=2, log_steps=3, max_epoch=2)
    trainer.run()
    rows = rows_of(tmp_path, "endpoints")
    assert [(row["step"], row["epoch"], row["iteration"]) for row in rows] == [
        (2, 1, 2),
        (4, 1, 4),
        (6, 2, 2),
        (8, 2, 4),
    ]
    for row in rows:
        x = kept[row["step"], "head.1"]
        found, gradient = (
            {key: row["values"][f"head.1/{way}{key}"] for key in ("mean", "std", "zeros", "nonfinite")}
            for way in ("", "grad/")
        )
        for own, tensor in ((found, x.detach()), (gradient, x.grad)):
            assert own["mean"] == pytest.approx(tensor.mean().item(), rel=1e-5)
            assert own["std"] == pytest.approx(tensor.std(correction=0).item(), rel=1e-5)
            assert own["zeros"] == pytest.approx((tensor == 0).float().mean().item())
            assert own["nonfinite"] == 0
    log = next((tmp_path / "logs").glob("train-*.log")).read_text()
    assert "endpoints of epoch: 1, iter: 2\n  head.1 (4, 64): mean " in log
    assert "; gradient: mean " in log


def test_histograms_go_to_the_writers_where_they_are_asked_for(tmp_path):
    class Keeps(MetricWriter):
        def histograms(self, tag, values, step):
            seen.append((tag, step, values.shape))

    seen = []
    trainer = DemoNetwork(tmp_path, "head.0")
    trainer.capture("head.1", every=2, histograms=True)
    trainer.add_writer(Keeps())
    trainer.run()
    assert seen == [(tag, step, (256,)) for step in (2, 4) for tag in ("endpoints/head.1", "endpoints/head.1/grad")]


# --------------------------------------------------------------------------------------------- nothing is left


def test_nothing_is_kept_alive_after_a_step_in_1000_steps(tmp_path):
    class Watches(ToyEpochTrainer):
        def before_train_step(self, epoch, iteration, data_dict):
            gc.collect() if iteration % 100 == 0 else None
            assert sum(each() is not None for each in seen) <= 2, "the step before is still at hand"
            seen[:] = [each for each in seen if each() is not None]

        def train_step(self, epoch, iteration, data_dict):
            output_dict, result_dict = super().train_step(epoch, iteration, data_dict)
            self.endpoints.register("error", output_dict["error"])
            return {}, result_dict

        def after_backward(self, *_args):
            assert len(self.endpoints.data_keys) == 2
            seen.extend(weakref.ref(value) for value in self.endpoints.data_dict.values())

    class Wrapped(Watches):
        def _register(self, *args):
            super()._register(*args)
            self.model = None
            model = self.register_model(nn.Sequential(nn.Linear(3, 1).double()))
            self.optimizer = self.scheduler = None
            self.register_optimizer(torch.optim.SGD(model.parameters(), lr=0.001))

    seen = []
    batch = {"x": torch.ones(2, 3, dtype=torch.float64), "y": torch.ones(2, dtype=torch.float64)}
    trainer = Wrapped(settings(tmp_path, val_every="never"), [batch] * 1000)
    trainer.capture("0", every=1)
    trainer.run()
    assert trainer.total_steps == 1000
    gc.collect()
    assert [each() for each in seen if each() is not None] == []
