"""Samplers of the user's through a kill in mid-epoch: the same bits, or an error that says why not."""

import pytest
import torch
from torch.utils.data import DataLoader, RandomSampler, Sampler, WeightedRandomSampler

from tests.toys import Rows, ToyEpochTrainer, settings
from vision3d_engine import DataError


class Mining(WeightedRandomSampler):
    """Its weights are changed in steps, as by hard example mining."""

    def state_dict(self):
        return {"weights": self.weights}

    def load_state_dict(self, state):
        self.weights.copy_(state["weights"])


class Counting(Sampler):
    """Draws another order in each pass, by a counter of its own."""

    def __init__(self):
        self.passes = 0

    def __len__(self):
        return 8

    def __iter__(self):
        self.passes += 1
        generator = torch.Generator().manual_seed(self.passes)
        return iter(torch.randperm(8, generator=generator).tolist())


class Trainer(ToyEpochTrainer):
    def __init__(self, cfg, make, stop_at=None):
        self.sampler, self.generator = make()
        super().__init__(cfg, DataLoader(Rows(8), batch_size=2, sampler=self.sampler))
        self.stop_at = stop_at
        for name, part in (("generator", self.generator), ("sampler", self.sampler)):
            if part is not None and hasattr(part, "get_state" if name == "generator" else "state_dict"):
                self.register_state(name, part)

    def train_step(self, epoch, iteration, data_dict):
        if (epoch, iteration) == self.stop_at:
            raise KeyboardInterrupt
        output_dict, result_dict = super().train_step(epoch, iteration, data_dict)
        if isinstance(self.sampler, Mining):
            self.sampler.weights[iteration] *= 9
        if self.generator is not None:
            result_dict["loss"] = result_dict["loss"] * torch.rand(1, generator=self.generator)[0]
        return output_dict, result_dict


def shared_generator():
    generator = torch.Generator().manual_seed(3)
    return RandomSampler(Rows(8), generator=generator), generator


def mining():
    return Mining(torch.ones(8), 8, generator=torch.Generator().manual_seed(1)), None


def counting():
    return Counting(), None


def broken_off(folder, make, stop_at):
    options = {"max_epoch": 3, "save_every": "1 iteration"}
    with pytest.raises(KeyboardInterrupt):
        Trainer(settings(folder, **options), make, stop_at).run()
    return lambda **more: Trainer(settings(folder, **options, resume=True, **more), make)


@pytest.mark.parametrize("stop_at", [(1, 3), (2, 4), (3, 1)])
def test_a_generator_that_sampler_and_steps_share_goes_on_to_the_same_bits(stop_at, tmp_path):
    whole = Trainer(settings(tmp_path / "whole", max_epoch=3), shared_generator)
    whole.run()
    resumed = broken_off(tmp_path / "broken", shared_generator, stop_at)()
    resumed.run()
    assert torch.equal(whole.model.weight, resumed.model.weight)


@pytest.mark.parametrize(("make", "stop_at"), [(mining, (1, 4)), (counting, (2, 3))])
def test_an_order_that_no_checkpoint_holds_is_noticed_and_said(make, stop_at, tmp_path):
    start = broken_off(tmp_path, make, stop_at)
    with pytest.raises(DataError, match=r"draws another order than .*save_every: 1 epoch.*--allow_changed_data"):
        start().run()
    start(allow_changed_data=True).run()


def test_a_sampler_that_does_not_end_is_cut_at_its_length(tmp_path):
    class Endless(Counting):
        def __iter__(self):
            while True:
                yield 0

    trainer = Trainer(settings(tmp_path, log_steps=1), lambda: (Endless(), None))
    trainer.run()
    assert trainer.total_steps == 4
