import pytest
import torch

from tests.toys import ToyEpochTrainer, settings
from vision3d_engine import NonFiniteError
from vision3d_engine.utils.profiling import profile_cpu_runtime, profile_cuda_runtime


def test_in_debug_mode_a_gradient_that_is_not_finite_stops_the_run_and_keeps_the_batch(tmp_path):
    class Explodes(ToyEpochTrainer):
        def train_step(self, epoch, iteration, data_dict):
            if iteration == 2:
                self.model.weight.register_hook(lambda gradient: gradient * float("inf"))
            return super().train_step(epoch, iteration, data_dict)

    toy = Explodes(settings(tmp_path, debug=True))
    toy.model.bias.requires_grad_(False)  # a frozen parameter has no gradient
    with pytest.raises(NonFiniteError, match="epoch 1, iteration 2: the gradient is not finite in weight"):
        toy.run()
    batch = torch.load(tmp_path / "debug" / "batch-epoch1-iter2.pt", weights_only=True)
    assert batch["x"].shape == (2, 3)


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


@pytest.mark.filterwarnings("ignore:Error detected in")
def test_in_debug_mode_a_backward_pass_that_makes_nan_stops_the_run_in_its_step_and_keeps_the_batch(tmp_path):
    class Rooted(ToyEpochTrainer):
        def train_step(self, epoch, iteration, data_dict):
            output_dict, result_dict = super().train_step(epoch, iteration, data_dict)
            if iteration == 2:
                result_dict["loss"] = result_dict["loss"] + (self.model.weight * 0).sqrt().sum()
            return output_dict, result_dict

    with pytest.raises(NonFiniteError, match=r"epoch 1, iteration 2: .* returned nan values .*The batch is saved in"):
        Rooted(settings(tmp_path, debug=True)).run()
    assert torch.load(tmp_path / "debug" / "batch-epoch1-iter2.pt", weights_only=True)["x"].shape == (2, 3)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_in_debug_mode_a_loss_that_is_not_finite_stops_the_run_in_its_step_and_keeps_the_batch(precision, tmp_path):
    toy = Spoiled(settings(tmp_path, debug=True, precision=precision))
    with pytest.raises(NonFiniteError, match=r"epoch 1, iteration 2: the loss is nan\. The batch is saved in"):
        toy.run()
    assert toy.updates == 1
    assert torch.load(tmp_path / "debug" / "batch-epoch1-iter2.pt", weights_only=True)["x"].shape == (2, 3)


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
