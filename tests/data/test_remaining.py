"""What is left of an epoch when some batches are done already, for each kind of loader."""

import pytest
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from vision3d_engine import build_dataloader
from vision3d_engine.data.remaining import RemainingBatches


class Numbers:
    """A data set that knows what was loaded."""

    def __init__(self):
        self.loaded = []

    def __len__(self):
        return 11

    def __getitem__(self, index):
        self.loaded.append(index)
        return {"x": index}


def loaders(data):
    batches = BatchSampler(SequentialSampler(data), 3, drop_last=False)
    return {
        "built": build_dataloader(data, 3, num_workers=0),
        "shuffled": build_dataloader(data, 3, num_workers=0, shuffle=True),
        "plain": DataLoader(data, 3),
        "batch sampler": DataLoader(data, batch_sampler=batches),
        "without batches": DataLoader(data, batch_size=None),
        "a list": [{"x": k} for k in range(4)],
    }


def content(pair):
    place, batch = pair
    return place, batch["x"].tolist() if hasattr(batch["x"], "tolist") else batch["x"]


@pytest.mark.parametrize("kind", loaders(Numbers()))
@pytest.mark.parametrize("done", [{0, 2}, {1}, set(), {0, 1, 2, 3}])
def test_the_rest_are_the_same_batches_at_the_same_places(kind, done):
    data = Numbers()
    everything = list(map(content, RemainingBatches(loaders(data)[kind]).batches(5, 1)))
    data.loaded.clear()
    rest = list(map(content, RemainingBatches(loaders(data)[kind]).remaining(5, 1, done)))
    assert rest == [pair for number, pair in enumerate(everything) if number not in done]
    if kind != "a list":
        flat = [pair[1] if isinstance(pair[1], list) else [pair[1]] for pair in rest]
        assert data.loaded == [index for batch in flat for index in batch]
