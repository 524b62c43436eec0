import json

import pytest
import torch

from tests.toys import ToyEpochTrainer, settings
from vision3d_engine import EpochBasedTrainer, NonFiniteError
from vision3d_engine.core.portable import decoded
from vision3d_engine.utils.profiling import profile_cpu_runtime, profile_cuda_runtime


def kept(folder):
    """The batch of the only file under debug/: the step that was kept."""
    (file,) = (folder / "debug").iterdir()
    assert file.name == "step-000002.pt"
    return decoded(torch.load(file, weights_only=True)["step"]["batch"])


def test_in_debug_mode_a_gradient_that_is_not_finite_stops_the_run_and_keeps_the_step(tmp_path):
    class Explodes(ToyEpochTrainer):
        def train_step(self, epoch, iteration, data_dict):
            if iteration == 2:
                self.model.weight.register_hook(lambda gradient: gradient * float("inf"))
            return super().train_step(epoch, iteration, data_dict)

    toy = Explodes(settings(tmp_path, debug=True))
    toy.model.bias.requires_grad_(False)  # a frozen parameter has no gradient
    with pytest.raises(NonFiniteError, match="epoch 1, iteration 2: the gradient is not finite in weight"):
        toy.run()
    assert kept(tmp_path)["x"].shape == (2, 3)


@pytest.mark.parametrize("factor", [1.0, float("inf")])
def test_debug_mode_looks_at_the_sparse_gradients_of_embeddings_too(tmp_path, factor):
    class Embedded(EpochBasedTrainer):
        def train_step(self, _epoch, iteration, data_dict):
            return {}, {"loss": Scaled.apply(self.model(data_dict["x"]), factor if iteration == 2 else 1.0).mean()}

    toy = Embedded(settings(tmp_path, debug=True, val_every="never"))
    toy.register_loader([{"x": torch.tensor([0, 1, 1])}] * 3)
    toy.register_optimizer(torch.optim.SGD(toy.register_model(torch.nn.Embedding(3, 2, sparse=True)).parameters()))
    if factor == 1.0:
        toy.run()
    else:
        with pytest.raises(NonFiniteError, match="epoch 1, iteration 2: the gradient is not finite in weight"):
            toy.run()


class Scaled(torch.autograd.Function):
    """Passes numbers on, and their gradient times a factor."""

    @staticmethod
    def forward(ctx, numbers, factor):
        ctx.factor = factor
        return numbers.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.factor, None


class Spoiled(ToyEpochTrainer):
    """Its second step has a loss, or a gradient, that is not finite."""

    spoils = "loss"

    def train_step(self, epoch, iteration, data_dict):
        output_dict, result_dict = super().train_step(epoch, iteration, data_dict)
        if iteration == 2 and self.spoils == "loss":
            result_dict["loss"] = result_dict["loss"] * float("nan")
        elif iteration == 2:
            result_dict["loss"] = result_dict["loss"] + self.model.weight.clone().sum() * 0
            self.model.weight.register_hook(lambda gradient: gradient * float("inf"))
        return output_dict, result_dict


@pytest.mark.filterwarnings("default:Error detected in")
def test_in_debug_mode_a_backward_pass_that_makes_nan_stops_the_run_in_its_step_and_keeps_it(tmp_path):
    class Rooted(ToyEpochTrainer):
        def train_step(self, epoch, iteration, data_dict):
            output_dict, result_dict = super().train_step(epoch, iteration, data_dict)
            if iteration == 2:
                result_dict["loss"] = result_dict["loss"] + (self.model.weight * 0).sqrt().sum()
            return output_dict, result_dict

    with pytest.raises(NonFiniteError, match=r"epoch 1, iteration 2: .* returned nan values .* of (.*)") as failure:
        Rooted(settings(tmp_path, debug=True)).run()
    assert f"of {__file__}, line {Rooted.train_step.__code__.co_firstlineno + 3}" in str(failure.value)
    assert kept(tmp_path)["x"].shape == (2, 3)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_in_debug_mode_a_loss_that_is_not_finite_stops_the_run_in_its_step_and_keeps_it(precision, tmp_path):
    toy = Spoiled(settings(tmp_path, debug=True, precision=precision))
    with pytest.raises(NonFiniteError, match=r"epoch 1, iteration 2: the loss is nan"):
        toy.run()
    assert toy.updates == 1
    assert kept(tmp_path)["x"].shape == (2, 3)


def bad_steps(folder):
    return [json.loads(line) for line in (folder / "debug" / "nonfinite.jsonl").read_text().splitlines()]


def test_a_run_that_stops_at_a_log_line_names_the_first_step_and_how_it_is_replayed(tmp_path):
    with pytest.raises(NonFiniteError, match=r"since iteration 2 .*: vision3d-engine replay SCRIPT --step 2\."):
        Spoiled(settings(tmp_path, log_steps=3)).run()
    command = "vision3d-engine replay SCRIPT --step 2"
    (row,) = bad_steps(tmp_path)
    assert row == {"step": 2, "epoch": 1, "iteration": 2, "why": "the run has stopped", "replay": command}


def test_the_error_of_a_run_that_stops_says_what_to_do_and_when_a_lower_rate_helps(tmp_path):
    with pytest.raises(NonFiniteError) as failure:
        Spoiled(settings(tmp_path, log_steps=3)).run()
    said = str(failure.value)
    assert "Where a weight was broken before it, that names the command for the step before; --debug stops a" in said
    assert "A lower learning rate or clipped gradients help where numbers grow, and nowhere else" in said


@pytest.mark.parametrize("own", [{}, {"async_save": False}])
def test_a_run_that_goes_on_says_its_first_such_step_once_and_at_its_end_that_nothing_is_saved(tmp_path, capfd, own):
    Spoiled(settings(tmp_path, log_steps=1, max_epoch=3, nonfinite="ignore", **own)).run()
    text, command = capfd.readouterr().err, "vision3d-engine replay SCRIPT --step 2"
    (row,) = bad_steps(tmp_path)
    assert row == {"step": 2, "epoch": 1, "iteration": 2, "why": "the run goes on", "replay": command}
    (line,) = [line for line in text.splitlines() if "no longer finite" in line]
    assert "WARNING | the training is no longer finite: epoch 1, since iteration 2 (loss nan)" in line
    assert f"Look into the step: {command}." in line
    (line,) = [line for line in text.splitlines() if "not saved, so that it replaces no good file" in line]
    assert f"Look into the first step that was not finite: {command}. This is said once" in line
    (line,) = [line for line in text.splitlines() if "run ended" in line]
    assert "WARNING | run ended, but what it has trained is not saved: 'checkpoint.pth' could not be written" in line


def test_so_does_a_run_whose_epoch_ends_before_a_log_line(tmp_path):
    with pytest.raises(NonFiniteError, match=r"since iteration 2 .*: vision3d-engine replay SCRIPT --step 2\."):
        Spoiled(settings(tmp_path, log_steps=100)).run()


def test_a_skipped_update_is_named_with_how_it_is_replayed(tmp_path, capfd):
    Spoiled(settings(tmp_path, log_steps=3, max_epoch=2, nonfinite="skip", max_skipped=1.0)).run()
    said = "iteration 2, samples 2, 3; look into it: vision3d-engine replay SCRIPT --step"
    assert f"training epoch 1, {said} 2\n" in (text := capfd.readouterr().err)
    assert f"training epoch 2, {said} 5\n" in text
    assert [(row["step"], row["why"]) for row in bad_steps(tmp_path)] == [
        (2, "the update was skipped"),
        (5, "the update was skipped"),
    ]


@pytest.mark.parametrize("spoils", ["loss", "gradient"])
def test_in_debug_mode_steps_whose_updates_are_skipped_are_kept_before_their_update(tmp_path, spoils, capfd):
    toy = Spoiled(settings(tmp_path, debug=True, nonfinite="skip", max_skipped=1.0, max_epoch=5, log_steps=9))
    toy.spoils = spoils
    toy.run()
    files = sorted((tmp_path / "debug").glob("step-*.pt"))
    steps = [int(file.stem.removeprefix("step-")) for file in files]
    assert steps == {"loss": [2, 5, 8], "gradient": [2, 3, 4]}[spoils]  # no more of a run
    said = f"its update is skipped, and the step is kept: vision3d-engine replay {files[1]} --script SCRIPT"
    assert said in capfd.readouterr().err


def test_of_a_window_that_is_skipped_the_batch_that_has_spoilt_it_is_kept(tmp_path):
    own = {"debug": True, "nonfinite": "skip", "max_skipped": 1.0, "grad_acc_steps": 3}
    Spoiled(settings(tmp_path, **own)).run()
    assert [file.name for file in (tmp_path / "debug").glob("step-*.pt")] == ["step-000002.pt"]


@pytest.mark.parametrize("setting", [{"precision": "fp16"}, {"nonfinite": "skip"}])
def test_in_debug_mode_gradients_whose_update_is_skipped_are_no_fault(setting, tmp_path):
    toy = Spoiled(settings(tmp_path, debug=True, max_skipped=1, **setting))
    toy.spoils = "gradient"
    toy.run()
    assert toy.updates == 3
    assert torch.isfinite(toy.model.weight).all()


def test_in_debug_mode_large_gradients_whose_norm_overflows_are_no_fault(tmp_path):
    class Large(ToyEpochTrainer):
        def after_backward(self, *args):
            self.model.weight.grad.fill_(1e200)

        def optimizer_step(self):
            self.model.weight.grad.zero_()
            super().optimizer_step()

    Large(settings(tmp_path, debug=True)).run()


def test_anomaly_detection_is_on_only_while_a_debug_run_lasts(tmp_path):
    seen = []

    class Look(ToyEpochTrainer):
        def before_train(self):
            seen.append(torch.is_anomaly_enabled())

    Look(settings(tmp_path, debug=True)).run()
    assert seen == [True]
    assert not torch.is_anomaly_enabled()


def test_run_times_are_printed(capsys):
    with profile_cpu_runtime("load"):
        pass
    with profile_cuda_runtime("copy"):
        pass
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["load", "copy"]


class Lazy(ToyEpochTrainer):
    broken_at = None

    def _register(self, train_loader, val_loader, lr):
        self.calls = []
        self.register_loader(train_loader, val_loader)
        torch.manual_seed(0)
        model = self.register_model(torch.nn.LazyLinear(1, dtype=torch.float64))
        self.register_optimizer(torch.optim.SGD(model.parameters(), lr=lr))

    def after_train_step(self, *args):
        if self.total_steps == self.broken_at:
            raise OSError(28, "broken off")


def test_a_lazy_module_trains_from_its_first_batch_and_resumes_to_the_same_bits(tmp_path):
    cfg = {"max_epoch": 2, "log_steps": 1, "save_every": "1 iteration"}
    straight, broken = Lazy(settings(tmp_path / "straight", **cfg)), Lazy(settings(tmp_path / "broken", **cfg))
    straight.run()
    broken.broken_at = 4
    with pytest.raises(OSError, match="broken off"):
        broken.run()
    resumed = Lazy(settings(tmp_path / "broken", **cfg, resume=True))
    resumed.run()
    assert torch.equal(straight.model.weight, resumed.model.weight)
