"""What a run writes down of its loaders."""

import torch
from torch.utils.data import DataLoader

from tests.toys import Rows, rows_loader
from vision3d_engine import build_dataloader
from vision3d_engine.data.loader_record import record_of
from vision3d_engine.data.resumable_loader import ResumableLoader


class Untouched(Rows):
    """Its samples may not be loaded."""

    def __getitem__(self, index):
        raise AssertionError(index)


def test_classes_sizes_and_order_are_recorded_without_a_sample_or_a_random_number():
    loader = ResumableLoader(build_dataloader(Untouched(7), 2, num_workers=0, shuffle=True))
    state = torch.get_rng_state()
    assert record_of(loader) == {
        "loader": "DataLoader",
        "dataset": "Untouched",
        "batch_size": 2,
        "num_workers": 0,
        "batches": 4,
        "samples": 7,
        "global_batch": 2,
        "order": "shuffled",
        "drop_last": False,
        "repeat": 1,
    }
    assert torch.equal(torch.get_rng_state(), state)


def test_a_plain_loader_is_recorded_as_the_one_that_the_engine_makes():
    plain = record_of(ResumableLoader(rows_loader(7)))
    assert plain == record_of(ResumableLoader(build_dataloader(Rows(7), 2, num_workers=0)))


def test_of_what_has_no_data_set_the_class_and_the_length_are_recorded():
    assert record_of(ResumableLoader([{"x": 1}])) == {"loader": "list", "dataset": None, "batches": 1}
    assert record_of(ResumableLoader({"x": 1} for _ in range(3)))["batches"] is None


def test_the_batches_of_a_process_are_those_of_its_share():
    record = record_of(ResumableLoader(DataLoader(Rows(8), 2), size=2))
    assert (record["batch_size"], record["global_batch"]) == (2, 4)
