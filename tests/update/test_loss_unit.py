"""Gradients of endpoints beside what else happens to losses: networks that take turns, hooks that come later."""

import pytest
import torch

from tests.toys import ToyEpochTrainer, linear_model, rows_loader, settings
from vision3d_engine import EpochBasedTrainer, Hook


class Turns(EpochBasedTrainer):
    """The first network is updated by itself, the second by the loss that the step returns."""

    def __init__(self, cfg):
        super().__init__(cfg)
        self.register_loader(rows_loader())
        self.seen = []
        for name in ("first", "second"):
            model = self.register_model(linear_model(), name=name)
            self.register_optimizer(torch.optim.SGD(model.parameters(), lr=0.1), name=name)
        self.capture("*", every=1)

    def train_step(self, epoch, iteration, data_dict):
        first, second = (self.model[name](data_dict["x"])[:, 0] for name in ("first", "second"))
        self.update("first", (first - data_dict["y"]).square().mean())
        return {"error": second - data_dict["y"]}, {"loss": (second - data_dict["y"]).square().mean()}

    def after_backward(self, epoch, iteration, data_dict, output_dict, result_dict):
        found = self.endpoints.get("second").grad[:, 0]
        self.seen.append(torch.equal(found, output_dict["error"].detach() * 2 / 2))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_loss_beside_an_update_of_one_network_alone(tmp_path, precision):
    trainer = Turns(settings(tmp_path, val_every="never", precision=precision))
    trainer.run()
    assert trainer.seen == [True] * 3


def test_a_hook_that_is_added_in_the_midst_of_an_epoch_acts_from_then_on(tmp_path):
    class Notes(Hook):
        def after_backward(self, epoch, iteration, data_dict, output_dict, result_dict):
            seen.append((iteration, self.owner.endpoints.get("error").grad is not None))

    class Adds(ToyEpochTrainer):
        def train_step(self, epoch, iteration, data_dict):
            output_dict, result_dict = super().train_step(epoch, iteration, data_dict)
            self.endpoints.register("error", output_dict["error"])
            return output_dict, result_dict

        def after_train_step(self, epoch, iteration, data_dict, output_dict, result_dict):
            if iteration == 1:
                self.add_hook(Notes())

    seen = []
    Adds(settings(tmp_path, precision="fp16")).run()
    assert seen == [(2, True), (3, True)]


@pytest.mark.parametrize("weight", [0, torch.tensor(0.0)])
def test_a_loss_without_weight_leaves_gradients_of_zeros_or_none(tmp_path, weight):
    class Weightless(ToyEpochTrainer):
        def train_step(self, epoch, iteration, data_dict):
            output_dict, result_dict = super().train_step(epoch, iteration, data_dict)
            self.endpoints.register("error", output_dict["error"])
            return output_dict, result_dict

        def loss_weight(self, data_dict, output_dict, result_dict):
            return weight

        def after_backward(self, *_args):
            gradient = self.endpoints.get("error").grad
            seen.append(gradient is None or not gradient.any())

    seen = []
    trainer = Weightless(settings(tmp_path))
    trainer.scheduler = None  # torch warns of one that moves on without a step
    trainer.run()
    assert seen == [True] * 3
