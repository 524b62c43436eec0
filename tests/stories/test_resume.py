"""A run that was stopped between epochs ends as one that was not, with everything random that a run has."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from vision3d_engine import EpochBasedTrainer, build_dataloader


class Noisy(Dataset):
    """Augments with torch's and numpy's global generators, as user data sets do."""

    def __len__(self):
        return 20

    def __getitem__(self, index):
        noise = torch.randn(3) * 0.1 + torch.from_numpy(np.random.normal(size=3)).float() * 0.1  # noqa: NPY002
        return {"x": torch.full((3,), index / 20.0) + noise}


class Trainer(EpochBasedTrainer):
    def __init__(self, folder, max_epoch, workers, resume):
        trainer = {"max_epoch": max_epoch, "resume": resume, "grad_acc_steps": 2}
        super().__init__({"exp": {"output_dir": str(folder), "seed": 5}, "trainer": trainer})
        train = build_dataloader(Noisy(), batch_size=3, num_workers=workers, shuffle=True)
        self.register_loader(train, build_dataloader(Noisy(), batch_size=5, num_workers=0, shuffle=True))
        torch.manual_seed(0)
        model = self.register_model(nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 1)))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        self.register_optimizer(optimizer)
        self.register_scheduler(torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4))
        self.batches = []

    def train_step(self, epoch, iteration, data_dict):
        self.batches.append(data_dict["x"].clone())
        return {}, {"loss": (self.model(data_dict["x"]) - 1).square().mean()}

    def val_step(self, epoch, iteration, data_dict):
        return {}, {"error": self.model(data_dict["x"]).abs().mean()}

    def after_val_epoch(self, epoch, summary_dict):
        self.summary = dict(summary_dict)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_ends_with_the_same_bits(tmp_path, workers):
    straight = Trainer(tmp_path / "straight", 4, workers, resume=False)
    straight.run()
    Trainer(tmp_path / "stopped", 2, workers, resume=False).run()
    torch.randn(17)  # whatever happened in between
    resumed = Trainer(tmp_path / "stopped", 4, workers, resume=True)
    resumed.run()
    expected, found = straight.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    assert straight.summary == resumed.summary
    assert all(torch.equal(a, b) for a, b in zip(straight.batches[-14:], resumed.batches, strict=True))


def test_no_epoch_repeats_the_order_or_the_augmentation_of_another(tmp_path):
    trainer = Trainer(tmp_path, 3, 0, resume=False)
    trainer.run()
    epochs = [torch.cat(trainer.batches[i * 7 : i * 7 + 7]) for i in range(3)]
    for first, second in ((0, 1), (1, 2), (0, 2)):
        assert not torch.equal(epochs[first], epochs[second])
