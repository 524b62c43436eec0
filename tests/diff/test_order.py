"""Which samples a step had is told from what a run has recorded, and is what it has read."""

import pytest
import torch
from torch.utils.data import DataLoader, WeightedRandomSampler

from tests.toys import Rows, ToyEpochTrainer, ToyIterTrainer, settings
from vision3d_engine import build_dataloader
from vision3d_engine.diff.order import BatchOrder
from vision3d_engine.diff.recorded import read_recorded


class Indexed(Rows):
    """Samples that tell their index."""

    def __getitem__(self, index):
        return super().__getitem__(index) | {"index": torch.tensor(index)}


def run(kind, folder, loader, **trainer):
    """Train a toy; return the samples of its steps by total steps."""
    toy, read = kind(settings(folder, max_epoch=3, log_steps=2, **trainer), loader), {}
    toy.before_train_step = lambda _epoch, _iteration, data: read.update({toy.total_steps: data["index"].tolist()})
    toy.run()
    return read


@pytest.mark.parametrize("kind", [ToyEpochTrainer, ToyIterTrainer])
@pytest.mark.parametrize("options", [{}, {"shuffle": True}, {"shuffle": True, "drop_last": True, "repeat": 2}])
def test_the_samples_of_every_step_are_known(tmp_path, kind, options):
    more = {"num_iters_per_epoch": 5} if kind is ToyIterTrainer else {}
    read = run(kind, tmp_path, build_dataloader(Indexed(7), 2, num_workers=0, **options), **more)
    order = BatchOrder(read_recorded(tmp_path))
    assert order.unknown == ""
    assert {step: order.samples(step) for step in read} == read
    assert order.samples(99) is None


def test_a_plain_loader_is_known_too_and_a_resume_keeps_the_order(tmp_path):
    loader = DataLoader(Indexed(8), 2, shuffle=True)
    read = run(ToyEpochTrainer, tmp_path, loader, max_updates=6)
    read |= run(ToyEpochTrainer, tmp_path, loader, resume=True)
    order = BatchOrder(read_recorded(tmp_path))
    assert sorted(read) == list(range(1, 13))
    assert {step: order.samples(step) for step in read} == read


def test_what_a_sampler_of_the_script_chooses_is_said_to_be_unknown(tmp_path):
    sampler = WeightedRandomSampler([1.0] * 6, 6)
    run(ToyEpochTrainer, tmp_path, DataLoader(Indexed(6), 2, sampler=sampler))
    order = BatchOrder(read_recorded(tmp_path))
    assert order.unknown == "chosen by WeightedRandomSampler"
    assert order.samples(1) is None


def test_a_run_that_has_recorded_no_data_has_an_unknown_order(tmp_path):
    run(ToyEpochTrainer, tmp_path, build_dataloader(Indexed(6), 2, num_workers=0))
    (tmp_path / "env.json").unlink()
    assert BatchOrder(read_recorded(tmp_path)).unknown == "not recorded"
