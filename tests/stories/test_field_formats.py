"""The batches of other codes: trained on, validated, tested, taken apart, resumed."""

import os
from pathlib import Path

import pytest
import torch

from tests.stories.field_formats import FORMATS, Cases, PyG, Singles, Trainer, loader, torch_geometric
from tests.stories.launching import results_of, start_anew, start_ranks
from vision3d_engine import DataError
from vision3d_engine.core.compare import differences
from vision3d_engine.core.tree import leaves
from vision3d_engine.data.prefetcher import HostTensors, Prefetcher

SCRIPT = Path(__file__).parent / "field_formats_script.py"
PATH = os.pathsep.join([str(SCRIPT.parents[2]), os.environ.get("PYTHONPATH", "")])

EACH_FORMAT = pytest.mark.parametrize("kind", FORMATS.values(), ids=FORMATS)


def as_plain(sample):
    return {key: value.to_dict() if hasattr(value, "to_dict") else value for key, value in sample.items()}


def assert_are_samples(cases, kind):
    found, expected = map(kind.as_sample, cases), map(as_plain, kind.samples())
    assert [list(differences(a, b)) for a, b in zip(found, expected, strict=True)] == [[]] * len(kind.samples())


@EACH_FORMAT
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_network_learns_from_each_format_and_is_tested_case_by_case(kind, num_workers, tmp_path):
    trainer = Trainer(kind, tmp_path, num_workers)
    trainer.run()
    assert trainer.val_losses[1] < trainer.val_losses[0]
    cases, singles = Cases(kind, tmp_path, 4, num_workers), Singles(kind, tmp_path, 1, num_workers)
    cases.run()
    singles.run()
    assert_are_samples(cases.cases, kind)
    assert_are_samples(singles.cases, kind)
    assert cases.losses == pytest.approx(singles.losses)


@EACH_FORMAT
def test_a_resume_in_mid_epoch_ends_with_the_weights_of_a_run_without_a_break(kind, tmp_path):
    whole = Trainer(kind, tmp_path / "whole")
    whole.run()
    Trainer(kind, tmp_path / "cut", max_updates=4).run()
    resumed = Trainer(kind, tmp_path / "cut", resume=True)
    resumed.run()
    assert list(differences(resumed.model.state_dict(), whole.model.state_dict())) == []
    assert resumed.val_losses[-1:] == whole.val_losses[-1:]


@EACH_FORMAT
def test_all_tensors_of_each_format_go_to_the_device(kind):
    said: list[str] = []
    prefetcher = Prefetcher(torch.device("meta"), look_ahead=False, host_tensors=HostTensors(said.append))
    for (_, moved), batch in zip(prefetcher(enumerate(loader(kind, 2, 0))), loader(kind, 2, 0), strict=True):
        assert dict.fromkeys(devices(batch), "meta") == devices(moved)
    assert said == []


def devices(batch):
    """Return the device of each tensor by its path."""
    return {path: leaf.device.type for path, leaf in leaves(as_plain(batch)) if isinstance(leaf, torch.Tensor)}


class Graphs(Trainer):
    """Takes the batches of torch_geometric's own loader."""

    def __init__(self, folder, samples):
        super().__init__(PyG, folder)
        train_loader, val_loader = (torch_geometric().loader.DataLoader(samples, batch_size=2) for _ in range(2))
        self.register_loader(train_loader, val_loader)


def test_the_loader_of_torch_geometric_yields_dicts_if_samples_are_dicts_and_else_an_error_says_so(tmp_path):
    Graphs(tmp_path / "dicts", PyG.samples()).run()
    trainer = Graphs(tmp_path / "graphs", [sample["graph"] for sample in PyG.samples()])
    with pytest.raises(DataError, match=r"train loader yielded DataBatch.* Return a dict from the data set's"):
        trainer.run()


def assert_losses_are_those_of_one_process(results, name, folder):
    alone = Singles(FORMATS[name], folder, 1)
    alone.run()
    assert sorted(map(float, results)) == pytest.approx(sorted(alone.losses), abs=1e-5)


def test_two_processes_test_what_they_have_trained_like_one(tmp_path):
    """Each process trains on the batches that are its own, and tests its own, at once behind the training."""
    results = results_of(start_ranks(SCRIPT, "Pointcept", tmp_path, PYTHONPATH=PATH))
    assert_losses_are_those_of_one_process(results, "Pointcept", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_two_processes_of_torchrun_test_what_they_have_trained_like_one(name, tmp_path):
    words = ["--standalone", "--nproc-per-node=2", SCRIPT, name, tmp_path]
    results = results_of([start_anew("-m", "torch.distributed.run", *words, PYTHONPATH=PATH)])
    assert_losses_are_those_of_one_process(results, name, tmp_path)
