"""A step of a run again: its bits, what is inside of it, and where the first number comes from that is not finite."""

import inspect
import random
import re
import shutil

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

import vision3d_engine
from tests.toys import settings
from vision3d_engine import EpochBasedTrainer, IterBasedTrainer, build_dataloader
from vision3d_engine.core.errors import CheckpointError, ConfigError, RegistrationError
from vision3d_engine.core.replay_command import replay_command
from vision3d_engine.loop.hooks import PROBES
from vision3d_engine.replay.capsule import Capsule
from vision3d_engine.replay.plan import Plan, Target
from vision3d_engine.replay.process import prepare
from vision3d_engine.run.session import REDIRECTIONS
from vision3d_engine.writers.step_values import recorded_steps


class Clouds(Dataset):
    """Samples that are drawn; one may hold NaN, and all may be lost."""

    def __init__(self, bad=None, lost=False):
        self.bad, self.lost = bad, lost

    def __len__(self):
        return 12

    def __getitem__(self, index):
        assert not self.lost
        points = torch.randn(4) * (float("nan") if index == self.bad else 1)
        return {"points": points, "target": torch.rand(()), "name": f"cloud-{index}"}


class _Steps:
    """Drops out at random; in one step something is planted."""

    def setup(self, bad_sample=None, plant=None, at=None, lost=False):
        clouds = Clouds(bad_sample, lost)
        loader = build_dataloader(clouds, 2, shuffle=True, num_workers=0)
        self.register_loader(loader, build_dataloader(clouds, 2, num_workers=0))
        torch.manual_seed(0)
        norm = nn.BatchNorm1d(8) if bad_sample is None else nn.Identity()  # whose running means would hold NaN
        layers = nn.Linear(4, 8), norm, nn.Dropout(0.3), nn.ReLU(inplace=True), nn.Linear(8, 1)
        self.register_model(nn.Sequential(*layers))
        self.register_optimizer(torch.optim.Adam(self.model.parameters(), lr=1e-2))
        self.plant, self.at = plant, at
        return self

    def train_step(self, _epoch, _iteration, data_dict):
        output = self.model(data_dict["points"])[:, 0]
        loss = (output - data_dict["target"]).square().mean()
        if self.plant is not None and self.total_steps == self.at:
            loss = loss + self.plant(output)
        return {}, {"loss": loss, "largest": output.detach().abs().max()}

    def val_step(self, _epoch, _iteration, data_dict):
        return {}, {"loss": self.model(data_dict["points"]).mean()}


class Epochs(_Steps, EpochBasedTrainer):
    pass


class InTurns(EpochBasedTrainer):
    """Two networks with an optimizer each, of which one is updated in the midst of a step."""

    def setup(self):
        self.register_loader(*(build_dataloader(Clouds(), 2, shuffle=True, num_workers=0) for _ in range(2)))
        torch.manual_seed(0)
        for name in ("first", "second"):
            net = self.register_model(nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.Linear(8, 1)), name)
            self.register_optimizer(torch.optim.Adam(net.parameters(), lr=1e-2), name)
        return self

    def train_step(self, _epoch, _iteration, data_dict):
        first = (self.model["first"](data_dict["points"])[:, 0] - data_dict["target"]).square().mean()
        self.update("first", first)
        both = self.model["first"](data_dict["points"]) - self.model["second"](data_dict["points"])
        return {}, {"loss": both.square().mean(), "first": first.detach()}

    def val_step(self, _epoch, _iteration, data_dict):
        return {}, {"loss": self.model["second"](data_dict["points"]).mean()}


class OfOneAlone(InTurns):
    """Updates one network in the midst of a step by a loss whose gradient is not finite."""

    def train_step(self, _epoch, _iteration, data_dict):
        first = self.model["first"](data_dict["points"])[:, 0]
        self.update("first", torch.sqrt((first * 0).square().sum()))
        return {}, {"loss": self.model["second"](data_dict["points"]).square().mean()}


class Iterations(_Steps, IterBasedTrainer):
    pass


def log_of_0(output):
    return torch.log(output.square().sum() * 0)


def exp_of_much(output):
    return torch.exp(output.sum() + 200)


def root_of_0(output):
    return torch.sqrt((output * 0).square().sum())


def square_of_much(output):
    return ((output.sum() + 2) * 1e25).square()


def mean_over_nothing(output):
    return output[output > 1e9].mean()


@pytest.fixture
def replayed(tmp_path):
    """What a replay answers and says."""

    def replay(make, capsule=None, debugger=False, run=None, **target):
        scratch = tmp_path / "scratch"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        if capsule is not None:
            target = {"step": Capsule(capsule).step}
        plan = Plan("script.py", Target(**target), str(scratch), None, debugger, capsule and str(capsule), run=run)
        prepare(plan)
        try:
            with pytest.raises(SystemExit):
                make().run()
        finally:
            PROBES.clear()
            REDIRECTIONS.clear()
        answer = plan.answer.read()
        return answer["verdict"], answer["text"]

    return replay


@pytest.mark.parametrize("kind", [Epochs, Iterations])
@pytest.mark.parametrize(
    "own",
    [
        {},
        {"grad_acc_steps": 3, "ema_decay": 0.9, "val_every": "4 iterations"},
        {"precision": "bf16", "save_every": "4 iterations", "clip_grad_norm": 0.1},
    ],
)
def test_every_step_of_a_finished_run_has_the_same_bits(tmp_path, replayed, kind, own):
    def make():
        return kind(settings(tmp_path / "run", max_epoch=3, log_steps=4, **own)).setup()

    make().run()
    for step in random.Random(0).sample(range(1, 19), 5):
        verdict, said = replayed(make, step=step)
        assert verdict == "same", said
        assert f"step {step}: epoch {(step - 1) // 6 + 1}, iteration {(step - 1) % 6 + 1}; replayed from" in said


def test_a_step_of_two_optimizers_that_take_turns_has_the_same_bits(tmp_path, replayed):
    def make():
        return InTurns(settings(tmp_path / "run", max_epoch=2, grad_acc_steps=2)).setup()

    make().run()
    for step in (1, 4, 9):
        verdict, said = replayed(make, step=step)
        assert verdict == "same", said
        assert "\nfirst " in said


def test_a_replay_goes_on_from_the_newest_checkpoint_before_the_step_and_leaves_the_folder_alone(tmp_path, replayed):
    class StoppedError(Exception):
        pass

    def make():
        return Epochs(settings(tmp_path / "run", max_epoch=3, log_steps=1, save_every="4 iterations")).setup()

    def stop(_epoch, _iteration, *_):
        if broken.total_steps == 11:
            raise StoppedError

    broken = make()
    broken.after_train_step = stop
    with pytest.raises(StoppedError):
        broken.run()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    for step, start in ((9, "checkpoint.pth (step 8)"), (8, "checkpoint.prev.pth (step 6)"), (3, "the beginning")):
        verdict, said = replayed(make, step=step)
        assert (verdict, f"replayed from {start}" in said) == ("same", True), said
    assert replayed(make, epoch=2, iteration=3)[0] == "same"
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before


@pytest.mark.parametrize("step", [2, 9, 14, 18])
def test_a_finished_run_is_replayed_from_its_newest_snapshot_before_the_step(tmp_path, replayed, step):
    def make():
        own = {"max_epoch": 3, "log_steps": 4, "replay_every": "3 iterations", "ema_decay": 0.9}
        return Iterations(settings(tmp_path / "run", **own)).setup()

    make().run()
    there = [int(path.stem.split("-")[1]) for path in (tmp_path / "run" / "checkpoints").glob("replay-*.pth")]
    before = max((each for each in there if each < step), default=0)
    start = f"replay-{before:06d}.pth (step {before})" if before else "the beginning of the run"
    verdict, said = replayed(make, step=step)
    assert (verdict, f"replayed from {start}" in said) == ("same", True), said


def test_samples_are_named_with_the_line_that_loads_them(tmp_path, replayed):
    batches = {}

    def make():
        toy = Epochs(settings(tmp_path / "run")).setup()
        toy.before_train_step = lambda e, i, batch: batches.update({i: batch})
        return toy

    make().run()
    points = batches[3]["points"]
    _, said = replayed(make, step=3)
    lines = [line.split(": ", 1) for line in said.splitlines() if "replay_sample" in line]
    assert [name.split("(")[1].strip(")") for name, _ in lines] == batches[3]["name"]
    found = [eval(line, {"vision3d_engine": vision3d_engine, "dataset": Clouds()}) for _, line in lines]
    assert torch.equal(torch.stack([sample["points"] for sample in found]), points)


@pytest.mark.parametrize(
    ("plant", "operation", "cause"),
    [
        (square_of_much, "pow, whose result () holds infinity", "large numbers overflow"),
        (log_of_0, "log, whose result () holds infinity", "the logarithm of 0"),
        (exp_of_much, "exp, whose result () holds infinity", "exp overflows"),
        (root_of_0, "the gradient () of SqrtBackward0, which holds infinity", "the gradient of sqrt at 0"),
        (mean_over_nothing, "mean, whose result () holds NaN", "a mean over an empty set"),
    ],
)
def test_the_operation_that_is_to_blame_is_named_with_its_line(tmp_path, replayed, plant, operation, cause):
    def make():
        return Epochs(settings(tmp_path / "run", nonfinite="ignore")).setup(plant=plant, at=5)

    make().run()
    verdict, said = replayed(make, step=5)
    line = next(line for line in said.splitlines() if line.startswith("first not finite: "))
    assert verdict == "same"
    assert operation in line
    assert f"test_replay.py, line {plant.__code__.co_firstlineno + 1}" in line
    assert cause in line


_MASK = torch.tensor([1.0, 0.0])


def division_by_0_beside_a_mask_by_its_logarithm(output):
    weights = torch.softmax(output + _MASK.log(), 0)  # infinity that is meant, and thrown away
    return (weights / torch.zeros(2)).sum()  # culprit


def root_beside_a_reciprocal_that_is_cut(output):
    inverse = torch.minimum(torch.zeros(2).reciprocal(), torch.ones(2))
    return (output.sum() * 0 - 1).sqrt() * inverse.sum()  # culprit


def scores_divided_by_0_behind_a_mask(output):
    scores = output.masked_fill(_MASK == 0, -torch.inf)
    return torch.softmax(scores / (output * 0), 0).sum()  # culprit


def infinity_minus_infinity(output):
    far = torch.zeros(2).masked_fill(_MASK > 0, torch.inf)
    return (output + (far - far)).sum()  # culprit


def zero_times_infinity(output):
    return (output * 0 * torch.full((2,), torch.inf)).sum()  # culprit


def softmax_of_nothing(output):
    with torch.no_grad():
        weights = torch.softmax(output.masked_fill(_MASK < 2, -torch.inf), 0)  # culprit
    return (weights * output).sum()


def logarithm_hidden_by_where(output):
    apart = output - output.detach()
    return torch.where(apart > 0, apart.log(), apart).sum()  # culprit


def nan_of_numpy(output):
    return (output * torch.from_numpy(np.full(2, np.nan, dtype=np.float32))).sum()  # culprit


def number_that_is_nan(output):
    return output.sum() * float("nan")  # culprit


def nan_in_sparse_values(output):
    values = output.detach() / 0  # culprit
    swapped = torch.sparse_coo_tensor([[0, 1], [1, 0]], values, (2, 2), check_invariants=False)
    return torch.sparse.mm(swapped, output[:, None]).sum()


def nan_written_into_memory(output):
    kept = torch.full((2,), torch.nan)
    torch.sqrt(-1 - output.detach().square(), out=kept)  # culprit
    return (kept * output).sum()


def gradients_that_meet(output):
    zero = (output - output.detach()).sum() * 1.0  # culprit
    return zero * 2e38 + zero * 2e38


def _line_of_culprit(plant):
    lines, first = inspect.getsourcelines(plant)
    return next(f"line {first + at}: `{line.strip()}`" for at, line in enumerate(lines) if "# culprit" in line)


def origin_in(said):
    """What a replay says of the first number that is not finite, with the lines below that belong to it."""
    return said.split("first not finite: ")[1].split("\n\n")[0]


@pytest.mark.parametrize(
    ("plant", "operation"),
    [
        (division_by_0_beside_a_mask_by_its_logarithm, "div, whose result (2,) holds NaN"),
        (root_beside_a_reciprocal_that_is_cut, "sqrt, whose result () holds NaN"),
        (scores_divided_by_0_behind_a_mask, "div, whose result (2,) holds infinity"),
        (infinity_minus_infinity, "sub, whose result (2,) holds NaN"),
        (zero_times_infinity, "mul, whose result (2,) holds NaN"),
        (softmax_of_nothing, "_softmax, whose result (2,) holds NaN"),
        (logarithm_hidden_by_where, "the gradient (2,) of LogBackward0, which holds NaN (0 times infinity)"),
        (nan_of_numpy, "a tensor (2,) that holds NaN and came from outside of torch"),
        (number_that_is_nan, "the number nan, given to mul"),
        (nan_in_sparse_values, "div, whose result (2,) holds infinity"),
        (nan_written_into_memory, "sqrt, whose result (2,) holds NaN"),
        (gradients_that_meet, "the gradient () that comes to MulBackward0, which holds infinity as the sum"),
    ],
)
def test_the_operation_that_the_loss_or_the_gradients_follow_from_is_named_and_no_other(
    tmp_path, replayed, plant, operation
):
    def make():
        return Epochs(settings(tmp_path / "run", nonfinite="ignore")).setup(plant=plant, at=5)

    make().run()
    verdict, said = replayed(make, step=5)
    assert verdict == "same"
    assert origin_in(said).startswith(operation), origin_in(said)
    assert _line_of_culprit(plant) in origin_in(said).splitlines()[0]


def test_infinity_that_an_operation_has_made_is_named_with_the_operation_that_makes_nan_of_it(tmp_path, replayed):
    def softmax_by_hand(output):
        exps = (output + 200).exp()
        return (exps / exps.sum()).sum()

    def make():
        return Epochs(settings(tmp_path / "run", nonfinite="ignore")).setup(plant=softmax_by_hand, at=5)

    make().run()
    first, then = origin_in(replayed(make, step=5)[1]).splitlines()[:2]
    assert first.startswith("exp, whose result (2,) holds infinity, in ")
    assert then.startswith("  then NaN: div, whose result (2,) holds NaN, in ")
    assert then.endswith("leave out what it stands for")


def test_what_the_forward_pass_has_thrown_away_is_named_beside_the_gradient_that_is_to_blame(tmp_path, replayed):
    def make():
        trainer = settings(tmp_path / "run", nonfinite="ignore")
        return Epochs(trainer).setup(plant=logarithm_hidden_by_where, at=5)

    make().run()
    first, beside = origin_in(replayed(make, step=5)[1]).splitlines()[:2]
    assert first.endswith("these hide a number, but not its gradient, so change what goes into the operation")
    assert beside.startswith("  not in the loss, but made on the way: log, whose result (2,) holds infinity, in ")


def test_a_result_that_nothing_is_to_blame_for_is_said_not_to_be_found(tmp_path, replayed):
    class Numbers(Epochs):
        def train_step(self, epoch, iteration, data_dict):
            output_dict, result_dict = super().train_step(epoch, iteration, data_dict)
            return output_dict, {**result_dict, "ratio": float("nan")}

    def make():
        return Numbers(settings(tmp_path / "run", nonfinite="ignore")).setup()

    make().run()
    said = origin_in(replayed(make, step=5)[1])
    assert said.startswith("not found: no operation of torch has made it of finite numbers. Usually: numpy, C or")
    assert "open the step with --pdb" in said


def test_a_number_that_only_looks_at_the_step_is_not_blamed_for_its_gradients(tmp_path, replayed):
    class Measured(Epochs):
        def train_step(self, epoch, iteration, data_dict):
            output_dict, result_dict = super().train_step(epoch, iteration, data_dict)
            return output_dict, {"nothing": torch.zeros(0).mean(), **result_dict}

    def make():
        return Measured(settings(tmp_path / "run", nonfinite="ignore")).setup(plant=root_of_0, at=5)

    make().run()
    assert origin_in(replayed(make, step=5)[1]).startswith("the gradient () of SqrtBackward0")
    assert origin_in(replayed(make, step=4)[1]).startswith("mean, whose result () holds NaN")


class Kept(nn.Module):
    """Holds NaN that no optimizer moves."""

    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.tensor(1.0))

    def forward(self, x):
        return x * self.scale


def test_a_buffer_that_holds_nan_is_named(tmp_path, replayed):
    class Buffered(Epochs):
        def setup(self):
            super().setup()
            self.model.append(Kept())
            self.model[-1].scale.fill_(torch.nan)
            return self

    def make():
        return Buffered(settings(tmp_path / "run", nonfinite="ignore", max_epoch=1)).setup()

    make().run()
    origin = origin_in(replayed(make, step=1)[1])
    assert origin.startswith("the buffer 5.scale holds NaN. Usually: the weights were broken before the first update")


class Twice(nn.Module):
    """Takes the root of what a layer returns when it is called again."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.root = Root()

    def forward(self, x):
        return self.root(self.layer(self.root(self.layer(x).square() + 1)) * 0)


class Root(nn.Module):
    def forward(self, x):
        return x.sqrt()


def test_a_gradient_is_told_with_the_module_and_its_call(tmp_path, replayed):
    class Rooted(Epochs):
        def setup(self):
            super().setup()
            self.model[0] = nn.Sequential(Twice(), nn.Linear(4, 8))
            return self

    def make():
        return Rooted(settings(tmp_path / "run", nonfinite="ignore", max_epoch=1)).setup()

    make().run()
    _, said = replayed(make, step=1)
    assert "the gradient (2, 4) of SqrtBackward0" in origin_in(said)
    assert "`return x.sqrt()` (module 0.0.root#2). Usually: " in origin_in(said)
    assert "\n0.0.root#2 " in said


def test_a_loss_that_is_walked_back_in_the_midst_of_a_step_is_searched_too(tmp_path, replayed):
    def make():
        return OfOneAlone(settings(tmp_path / "run", max_epoch=1, nonfinite="ignore")).setup()

    make().run()
    _, said = replayed(make, step=1)
    line = next(line for line in said.splitlines() if line.startswith("first not finite: "))
    assert "the gradient () of SqrtBackward0, which holds infinity" in line
    assert f"test_replay.py, line {OfOneAlone.train_step.__code__.co_firstlineno + 2}" in line
    row = next(line.split() for line in said.splitlines() if line.startswith("first.0.weight"))
    assert row[-1] == "32"


@pytest.mark.parametrize(
    "own",
    [
        {"grad_acc_steps": 3},
        {"ema_decay": 0.9, "save_every": "2 iterations"},
        {"grad_acc_steps": 2, "nonfinite": "skip", "max_skipped": 1.0, "replay_every": "2 iterations"},
        {"precision": "bf16"},
    ],
)
def test_a_planted_fault_is_found_and_has_the_bits_of_the_run(tmp_path, replayed, own):
    """In the midst of a window, with an average of the weights, behind snapshots, in bf16."""

    def make():
        trainer = {"nonfinite": "ignore", "log_steps": 4, "max_epoch": 2, **own}
        return Epochs(settings(tmp_path / "run", **trainer)).setup(plant=mean_over_nothing, at=8)

    make().run()
    verdict, said = replayed(make, step=8)
    assert (verdict, "loss nan" in said) == ("same", True), said
    assert "first not finite: mean, whose result () holds NaN, in " in said
    assert f"test_replay.py, line {mean_over_nothing.__code__.co_firstlineno + 1}" in said


def test_a_fault_of_one_of_several_optimizers_is_found(tmp_path, replayed):
    class Faulty(InTurns):
        def train_step(self, epoch, iteration, data_dict):
            output_dict, result_dict = super().train_step(epoch, iteration, data_dict)
            if self.total_steps == 8:
                result_dict["loss"] = result_dict["loss"] + log_of_0(result_dict["loss"])
            return output_dict, result_dict

    def make():
        return Faulty(settings(tmp_path / "run", max_epoch=2, grad_acc_steps=2, nonfinite="ignore")).setup()

    make().run()
    verdict, said = replayed(make, step=8)
    assert verdict == "same", said
    assert "first not finite: log, whose result () holds infinity, in " in said
    assert f"test_replay.py, line {log_of_0.__code__.co_firstlineno + 1}" in said


class Exploding(EpochBasedTrainer):
    """Its learning rate is too high, most for its last layer."""

    def setup(self):
        self.register_loader(build_dataloader(Clouds(), 2, shuffle=True, num_workers=0))
        torch.manual_seed(0)
        self.register_model(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 1)))
        groups = [{"params": layer.parameters(), "lr": lr} for layer, lr in zip(self.model, (1e-9, 30.0), strict=True)]
        self.register_optimizer(torch.optim.SGD(groups))
        return self

    def train_step(self, _epoch, _iteration, data_dict):
        error = self.model(data_dict["points"])[:, 0] - data_dict["target"]
        return {}, {"loss": error.square().mean()}


def test_weights_that_explode_are_said_with_the_parameter_that_grew_first(tmp_path, replayed):
    def make():
        return Exploding(settings(tmp_path / "run", max_epoch=20, log_steps=1, val_every="never")).setup()

    with pytest.raises(vision3d_engine.NonFiniteError, match="replay SCRIPT --step") as failure:
        make().run()
    step = int(str(failure.value).split("--step ")[1].split(".")[0])
    verdict, said = replayed(make, step=step)
    assert (verdict, "loss inf" in said) == ("same", True), said
    origin, growth = (line for line in said.splitlines() if line.startswith(("first not finite", "exploding")))
    assert origin.endswith("large numbers overflow: look at the activations before it, and at the learning rate")
    assert f"test_replay.py, line {Exploding.train_step.__code__.co_firstlineno + 2}" in origin
    assert growth.startswith("exploding: the norm of 1.")
    assert " grew first: " in growth
    assert "where the replay starts, more than 10 times that behind step 1" in growth


def test_of_a_step_that_raises_the_operation_and_its_samples_are_those_of_the_run(tmp_path, replayed):
    def make():
        return Epochs(settings(tmp_path / "run")).setup(plant=lambda output: output @ torch.ones(7), at=5)

    with pytest.raises(RuntimeError, match=r"size mismatch|inconsistent") as ran:
        make().run()
    with pytest.raises(RuntimeError) as again:
        replayed(make, step=5)
    assert str(again.value) == str(ran.value)
    assert again.value.__notes__[0] == ran.value.__notes__[0]  # epoch, iteration, samples


def test_what_is_not_finite_on_purpose_is_not_blamed(tmp_path, replayed):
    def masked(output):
        infinite = torch.log(torch.zeros_like(output))
        return torch.softmax(torch.where(output > output.mean(), infinite, output), 0).sum()

    def make():
        return Epochs(settings(tmp_path / "run")).setup(plant=masked, at=5)

    make().run()
    verdict, said = replayed(make, step=5)
    assert verdict == "same"
    assert "first not finite" not in said


def test_the_debugger_is_opened_once_where_the_step_begins(tmp_path, replayed):
    opened = []

    def make():
        toy = Epochs(settings(tmp_path / "run")).setup()
        toy.breakpoint = lambda: opened.append(toy.total_steps)
        return toy

    make().run()
    assert replayed(make, debugger=True, step=5)[0] == "same"
    assert opened == [5]


def test_a_sample_with_nan_is_named(tmp_path, replayed):
    def make():
        return Epochs(settings(tmp_path / "run", nonfinite="skip", max_skipped=1.0)).setup(bad_sample=7)

    make().run()
    recorded = recorded_steps(tmp_path / "run" / "logs" / "steps.jsonl")
    step = next(step for step, values in recorded.items() if values["loss"] != values["loss"])
    verdict, said = replayed(make, step=step)
    assert verdict == "same"
    assert "first not finite: data_dict['points'] holds NaN or infinity, sample 7. Usually: the data" in said


def test_weights_that_an_earlier_step_has_broken_are_named(tmp_path, replayed):
    def make():
        return Epochs(settings(tmp_path / "run", nonfinite="ignore")).setup(plant=log_of_0, at=2)

    make().run()
    line = next(line for line in replayed(make, step=4)[1].splitlines() if line.startswith("first not finite: "))
    assert line.startswith("first not finite: the parameter 0.weight holds NaN")
    assert line.endswith("an earlier update has broken the weights; replay the step before: " + replay_command(3))


def test_weights_that_were_broken_before_the_first_step_are_blamed_on_no_step(tmp_path, replayed):
    def make():
        toy = Epochs(settings(tmp_path / "run", nonfinite="ignore")).setup()
        with torch.no_grad():
            toy.model[0].weight.fill_(float("nan"))
        return toy

    make().run()
    said = replayed(make, step=1)[1]
    assert "the parameter 0.weight holds NaN or infinity. Usually: the weights were broken before the first" in said


def test_rows_without_a_finite_number_are_left_out_behind_broken_weights(tmp_path, replayed):
    def make():
        return Epochs(settings(tmp_path / "run", nonfinite="ignore")).setup(plant=log_of_0, at=2)

    make().run()
    _, said = replayed(make, step=4)
    assert "nan" not in said.split("first not finite")[1]
    assert said.splitlines()[-1].endswith(" rows without a finite number")
    assert "4.weight  " in replayed(make, step=2)[1]


class Strange(nn.Module):
    """Returns tensors of all layouts and types."""

    def forward(self, x):
        rows = x.detach()
        layouts = torch.strided, torch.jagged
        nested = [torch.nested.nested_tensor([rows[:1], rows[1:]], layout=layout) for layout in layouts]
        scattered = torch.sparse_coo_tensor([[0, 0], [1, 1]], rows[:, 0], (2, 2), check_invariants=False)
        packed = torch.zeros(2, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
        types = torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.complex32
        kinds = [rows.to(dtype) for dtype in types]
        return {"nested": nested, "scattered": [scattered, rows.to_mkldnn()], "packed": packed, "kinds": kinds}


class Around(nn.Module):
    """Multiplies by what it looks up, whose gradient is sparse."""

    def __init__(self):
        super().__init__()
        self.strange, self.rows = Strange(), nn.Embedding(12, 8, sparse=True)

    def forward(self, x):
        self.strange(x)
        return x * self.rows(torch.tensor([3, 3]))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
def test_tensors_of_any_layout_and_type_in_modules_and_batches_fail_no_step(tmp_path, replayed):
    class Odd(Epochs):
        def setup(self):
            super().setup()
            self.model[1] = Around()
            return self

        def before_train_step(self, _epoch, _iteration, data_dict):
            points = data_dict["points"]
            data_dict.update(sparse=points.to_sparse(), small=points.to(torch.float8_e5m2), array=points.numpy())

        def train_step(self, epoch, iteration, data_dict):
            points = data_dict["points"] + data_dict["sparse"].to_dense() + data_dict["small"].float()
            return super().train_step(epoch, iteration, {**data_dict, "points": points})

    def make():
        return Odd(settings(tmp_path / "run", max_epoch=1)).setup()

    make().run()
    verdict, said = replayed(make, step=3)
    assert verdict == "same", said
    rows = {line.split()[0]: line.split() for line in said.splitlines() if line.startswith("1.strange")}
    assert rows.pop("1.strange['packed']")[-3:] == ["not", "looked", "at"]
    kinds = [f"['nested'][{each}]" for each in range(2)] + [f"['scattered'][{each}]" for each in range(2)]
    assert rows.keys() == {f"1.strange{kind}" for kind in [*kinds, *(f"['kinds'][{each}]" for each in range(4))]}
    assert {row[-1] for row in rows.values()} == {"0"}
    assert any(line.startswith("1.rows.weight ") for line in said.splitlines())


@pytest.mark.parametrize(
    "kind", [torch.Tensor.to_sparse, lambda points: points.to(torch.float8_e5m2), torch.Tensor.numpy]
)
def test_nan_in_a_batch_is_named_whatever_holds_it(tmp_path, replayed, kind):
    class Held(Epochs):
        def before_train_step(self, _epoch, _iteration, data_dict):
            data_dict["held"] = kind(data_dict["points"] / 0)

        def train_step(self, epoch, iteration, data_dict):
            output_dict, result_dict = super().train_step(epoch, iteration, data_dict)
            held = data_dict["held"]
            held = torch.as_tensor(held).to_dense() if held is not None else held
            return output_dict, {**result_dict, "loss": result_dict["loss"] + (held.float() * 0).sum()}

    def make():
        return Held(settings(tmp_path / "run", max_epoch=1, nonfinite="ignore")).setup()

    make().run()
    assert origin_in(replayed(make, step=1)[1]).startswith("data_dict['held'] holds NaN or infinity")


def test_figures_are_those_of_the_tensors(tmp_path, replayed):
    found = {}

    def make():
        toy = Epochs(settings(tmp_path / "run", max_epoch=1)).setup()
        toy.after_backward = lambda e, i, *_: found.update({i: toy.model[4].weight.grad.clone()})
        return toy

    make().run()
    gradient = found[4].double()
    _, said = replayed(make, step=4)
    row = next(line.split() for line in said.splitlines() if line.startswith("4.weight"))
    numbers = gradient.mean(), gradient.std(correction=0), gradient.min(), gradient.max()
    assert row[1:] == ["1x8", *(f"{number.item():.4g}" for number in numbers), "0"]
    assert "gradients of activations" in said


@pytest.mark.parametrize("given", [{}, {"step": 0}, {"epoch": 1}, {"step": 1, "epoch": 1, "iteration": 1}])
def test_a_step_must_be_named_in_one_way(given):
    with pytest.raises(ConfigError, match="expected is --step N, or --epoch N --iteration M"):
        Target(**given)


# ------------------------------------------------------------------------------------------- a step in a file


def dumping(kind, folder, at, **own):
    """A run that writes one of its steps into a file."""
    toy = kind(settings(folder, max_epoch=3, log_steps=4, **own)).setup()

    def dump(*_):
        if toy.total_steps == at:
            toy.dump_step()

    toy.after_backward = dump
    return toy


@pytest.mark.parametrize("kind", [Epochs, Iterations])
@pytest.mark.parametrize("own", [{}, {"grad_acc_steps": 3, "precision": "bf16"}, {"nonfinite": "skip"}])
def test_a_step_in_a_file_has_the_bits_of_the_run_without_its_data(tmp_path, replayed, kind, own):
    dumping(kind, tmp_path / "run", 8, **own).run()
    capsule = tmp_path / "run" / "debug" / "step-000008.pt"
    verdict, said = replayed(lambda: kind(settings(tmp_path / "run", max_epoch=3, **own)).setup(lost=True), capsule)
    assert verdict == "same", said
    assert "step 8: epoch 2, iteration 2; replayed from step-000008.pt" in said


def test_a_step_in_a_file_knows_its_samples_and_the_lines_that_load_them(tmp_path, replayed):
    def make(lost=True):
        return Epochs(settings(tmp_path / "run", max_epoch=3)).setup(lost=lost)

    def samples_in(said):
        return said[said.index("\nsamples:\n") : said.index("\nloss ")]

    dumping(Epochs, tmp_path / "run", 8).run()
    capsule = tmp_path / "run" / "debug" / "step-000008.pt"
    _, of_run = replayed(lambda: make(lost=False), step=8)
    assert samples_in(replayed(make, capsule)[1]) == samples_in(of_run)
    assert samples_in(of_run).count("vision3d_engine.replay_sample(dataset, ") == 2


def test_a_step_in_a_file_of_an_older_engine_has_its_bits_and_knows_the_names_of_its_samples_alone(tmp_path, replayed):
    dumping(Epochs, tmp_path / "run", 8).run()
    capsule = tmp_path / "run" / "debug" / "step-000008.pt"
    state = torch.load(capsule, weights_only=True)
    del state["step"]["samples"]
    torch.save(state, capsule)
    verdict, said = replayed(lambda: Epochs(settings(tmp_path / "run", max_epoch=3)).setup(lost=True), capsule)
    assert verdict == "same", said
    assert "replay_sample" not in said
    assert re.search(r"^samples:\n  cloud-\d+\n  cloud-\d+\nloss", said, re.MULTILINE)


def test_a_step_in_a_file_loads_as_data_only(tmp_path):
    dumping(Epochs, tmp_path, 3).run()
    state = torch.load(tmp_path / "debug" / "step-000003.pt", weights_only=True)
    assert state["step"].keys() >= {"batch", "seed", "rank", "epoch", "iteration", "settings", "why", "line"}
    assert state.keys() >= {"model", "optimizer", "progress", "about"}


@pytest.mark.parametrize("own", [{"debug": True}, {"save_on_exception": True}])
def test_a_step_that_fails_is_kept_and_fails_again_from_its_file(tmp_path, replayed, own):
    def fail(_output):
        raise ZeroDivisionError("planted")

    toy = Epochs(settings(tmp_path / "run", **own)).setup(plant=fail, at=4)
    with pytest.raises(ZeroDivisionError) as failure:
        toy.run()
    capsule = tmp_path / "run" / "debug" / "step-000004.pt"
    assert any(f"vision3d-engine replay {capsule} --script SCRIPT" in note for note in failure.value.__notes__)
    line = torch.load(capsule, weights_only=True)["step"]["line"]
    assert line == f"{__file__}, line {fail.__code__.co_firstlineno + 1}"
    with pytest.raises(ZeroDivisionError, match="planted"):
        replayed(lambda: Epochs(settings(tmp_path / "run")).setup(plant=fail, at=4, lost=True), capsule)


def test_a_debug_run_keeps_the_step_that_is_not_finite_and_its_operation_is_named(tmp_path, replayed):
    toy = Epochs(settings(tmp_path / "run", debug=True)).setup(plant=log_of_0, at=4)
    with pytest.raises(vision3d_engine.NonFiniteError):
        toy.run()
    capsule = tmp_path / "run" / "debug" / "step-000004.pt"
    own = settings(tmp_path / "run", debug=True)
    _, said = replayed(lambda: Epochs(own).setup(plant=log_of_0, at=4, lost=True), capsule)
    assert "first not finite: log, whose result () holds infinity" in said


@pytest.mark.parametrize("fault", [{"plant": log_of_0, "at": 1}, {"lost": True}], ids=["log line", "loader"])
def test_an_error_between_two_steps_of_an_open_window_keeps_neither(tmp_path, fault):
    own = {"save_on_exception": True, "grad_acc_steps": 4, "log_steps": 2}
    toy = Epochs(settings(tmp_path, **own)).setup(**fault | {"lost": False})
    toy.after_train_step = lambda *_: setattr(toy.train_loader.dataset, "lost", "lost" in fault)
    with pytest.raises((vision3d_engine.NonFiniteError, vision3d_engine.SampleError)) as failure:
        toy.run()
    assert not any("the step is kept" in note for note in getattr(failure.value, "__notes__", []))
    assert not (tmp_path / "debug").exists() or not [*(tmp_path / "debug").glob("step-*.pt")]


def test_steps_that_fail_leave_no_file_by_default(tmp_path):
    toy = Epochs(settings(tmp_path)).setup(plant=lambda _: 1 // 0, at=4)
    with pytest.raises(ZeroDivisionError):
        toy.run()
    assert not (tmp_path / "debug").exists()


@pytest.mark.parametrize("moment", ["before_train", "after_train_step", "after_val_step"])
def test_a_step_is_dumped_before_its_update_alone(tmp_path, moment):
    toy = Epochs(settings(tmp_path)).setup()
    setattr(toy, moment, lambda *_: toy.dump_step())
    with pytest.raises(RegistrationError, match="expected is a call in before_train_step, train_step"):
        toy.run()


class Both:
    """A script with two trainers, of which the second dumps a step."""

    def __init__(self, folder):
        self.folder = folder

    def run(self):
        Epochs(settings(self.folder / "first", max_epoch=1)).setup().run()
        dumping(Epochs, self.folder / "second", 8).run()


def test_of_two_trainers_of_a_script_the_one_with_the_run_folder_is_replayed_and_the_folder_is_said(tmp_path, replayed):
    Both(tmp_path).run()
    second = tmp_path / "second"
    for step, run, folder in ((3, None, "first"), (3, str(second), "second"), (8, str(second), "second")):
        verdict, said = replayed(lambda: Both(tmp_path), step=step, run=run)
        assert verdict == "same", said
        assert f"\nrun folder: {tmp_path / folder}\n" in said
    verdict, said = replayed(lambda: Both(tmp_path), second / "debug" / "step-000008.pt", run=str(second))
    assert verdict == "same", said


def test_samples_that_have_names_alone_are_told_by_them(tmp_path, replayed):
    def make():
        toy = Epochs(settings(tmp_path / "run", max_epoch=1)).setup()
        batches = [
            {"points": torch.ones(2, 4), "target": torch.ones(2), "name": [f"a-{n}", f"b-{n}"]} for n in range(3)
        ]
        toy.register_loader(batches, batches)
        return toy

    make().run()
    _, said = replayed(make, step=2)
    assert "\nsamples:\n  a-1\n  b-1\nloss " in said


FOREIGN = {
    "half counters": {"optimizer": {"state": {}}, "progress": {"epoch": 3}},
    "a list": {"optimizer": {"state": {}}, "progress": [1, 2]},
    "a text": {"optimizer": {"state": {}}, "progress": "half way"},
    "about what": {"optimizer": {"state": {}}, "about": "mine", "progress": "half way"},
    "no dict": [1, 2],
}


def test_what_others_have_put_beside_the_checkpoints_is_no_start_of_a_replay(tmp_path, replayed):
    def make():
        return Epochs(settings(tmp_path / "run", max_epoch=2)).setup()

    make().run()
    for name, content in FOREIGN.items():
        torch.save(content, tmp_path / "run" / "checkpoints" / f"{name}.pth")
    (tmp_path / "run" / "checkpoints" / "notes.pth").write_text("these are notes")
    verdict, said = replayed(make, step=8)
    assert verdict == "same", said


def test_a_file_without_a_step_is_refused(tmp_path):
    Epochs(settings(tmp_path)).setup().run()
    with pytest.raises(CheckpointError, match=r"holds no step; expected is a file that trainer.dump_step\(\)"):
        Capsule(tmp_path / "checkpoints" / "checkpoint.pth")
