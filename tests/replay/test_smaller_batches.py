"""The batch of a step without each of its samples: as the loader would have joined it."""

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from vision3d_engine import build_dataloader, collate_packed
from vision3d_engine.core.compare import differences
from vision3d_engine.core.errors import DataError
from vision3d_engine.replay.smaller_batches import read_batch, without_each, write_batches


class Clouds(Dataset):
    """Clouds of several sizes, or of one."""

    def __init__(self, sizes):
        self.sizes = sizes

    def __len__(self):
        return len(self.sizes)

    def __getitem__(self, index):
        points = torch.arange(3.0 * self.sizes[index]).reshape(-1, 3) + index
        return {"points": points, "label": index, "name": f"cloud-{index}"}


def padded(samples):
    """A collate function of a script's own, whose batch does not tell how long its clouds are."""
    longest = max(len(sample["points"]) for sample in samples)
    clouds = [
        torch.nn.functional.pad(sample["points"], (0, 0, 0, longest - len(sample["points"]))) for sample in samples
    ]
    return {"points": torch.stack(clouds), "total": sum(len(sample["points"]) for sample in samples)}


@pytest.mark.parametrize(
    ("sizes", "collate", "places"),
    [
        ([4, 4, 4], None, []),
        ([5, 3, 7], collate_packed, []),
        ([5, 3, 7], collate_packed, [0, 1, 2]),
        ([5, 3, 7], padded, [0, 1, 2]),
    ],
)
def test_each_is_what_the_loader_makes_of_the_other_samples(sizes, collate, places):
    clouds = Clouds(sizes)
    loader = build_dataloader(clouds, 3, collate_fn=collate, num_workers=0)
    samples = [clouds[place] for place in range(3)]
    for place, smaller in enumerate(without_each(loader.collate_fn(samples), loader, places)):
        others = loader.collate_fn([sample for other, sample in enumerate(samples) if other != place])
        assert not list(differences(smaller, others))


@pytest.mark.parametrize(
    ("loader", "batch"),
    [
        ([], {"points": torch.zeros(2, 3)}),
        (DataLoader(Clouds([3, 5]), 2, collate_fn=padded), padded([Clouds([3, 5])[place] for place in range(2)])),
        (DataLoader(Clouds([3]), batch_size=None), {"points": torch.zeros(2, 3)}),
    ],
)
def test_a_batch_that_cannot_be_taken_apart_is_refused_and_what_is_needed_is_said(loader, batch):
    with pytest.raises(DataError, match=r"cannot be taken apart into its samples .* Expected is a loader whose"):
        without_each(batch, loader, [])


def test_a_batch_of_one_sample_is_refused():
    loader = DataLoader(Clouds([3]), 1)
    with pytest.raises(DataError, match="holds one sample, without which there is no step"):
        without_each(loader.collate_fn([Clouds([3])[0]]), loader, [0])


def test_packed_batches_come_back_from_files_of_data_as_they_were(tmp_path):
    batch = collate_packed([Clouds([5, 3])[place] for place in range(2)])
    (path,) = write_batches(tmp_path, [batch])
    again = read_batch(tmp_path / path)
    assert not list(differences(again, batch))
    assert again["lengths"].joined == batch["lengths"].joined
