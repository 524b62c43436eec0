"""Plain DataLoaders with samplers of their own: read as torch reads them, and from any batch on."""

import random
from collections import Counter
from itertools import chain

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from tests.toys import ToyEpochTrainer, settings
from vision3d_engine.core.errors import DataError
from vision3d_engine.data.dealing import describe_changes
from vision3d_engine.data.resumable_loader import ResumableLoader


class Noisy(Dataset):
    """Sample i is the number i, and a number that it draws."""

    def __init__(self, count=24):
        self.count, self.offset = count, 0

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return {"index": index + self.offset, "noise": torch.rand(()) + np.random.uniform()}  # noqa: NPY002


class Drawing:
    """Shuffles by a generator of its own."""

    def __init__(self, generator, count=24):
        self.generator, self.count = generator, count

    def __len__(self):
        return self.count

    def __iter__(self):
        numbers = list(range(self.count))
        if isinstance(self.generator, torch.Generator):
            numbers = torch.randperm(self.count, generator=self.generator).tolist()
        else:
            self.generator.shuffle(numbers)
        return iter(numbers)


class Nested:
    """Keeps its samplers where it likes."""

    def __init__(self, *inner):
        self.inner = {"samplers": list(inner)}

    def __len__(self):
        return sum(map(len, self.inner["samplers"]))

    def __iter__(self):
        return chain.from_iterable(self.inner["samplers"])


def nested():
    generator = torch.Generator().manual_seed(3)
    return Nested(RandomSampler(range(5), generator=generator), Drawing(random.Random(5), 7))


DATA, HALF = Noisy(), Subset(Noisy(), range(0, 24, 2))
MAKE = {
    "batch sampler": lambda **o: DataLoader(DATA, batch_sampler=BatchSampler(RandomSampler(DATA), 4, False), **o),
    "sequential part": lambda **o: DataLoader(DATA, 4, sampler=SequentialSampler(range(10)), **o),
    "subset": lambda **o: DataLoader(HALF, 4, shuffle=True, **o),
    "subset of a subset": lambda **o: DataLoader(Subset(HALF, range(5)), 2, **o),
    "subset random": lambda **o: DataLoader(DATA, 4, sampler=SubsetRandomSampler(range(9)), **o),
    "weighted": lambda **o: DataLoader(DATA, 4, sampler=WeightedRandomSampler([1.0] * 24, 30), **o),
    "replacement": lambda **o: DataLoader(DATA, 4, sampler=RandomSampler(DATA, replacement=True, num_samples=9), **o),
    "generator": lambda **o: DataLoader(DATA, 4, shuffle=True, generator=torch.Generator().manual_seed(5), **o),
    "own torch": lambda **o: DataLoader(DATA, 4, sampler=Drawing(torch.Generator().manual_seed(3)), **o),
    "own numpy": lambda **o: DataLoader(DATA, 4, sampler=Drawing(np.random.default_rng()), **o),
    "own old numpy": lambda **o: DataLoader(DATA, 4, sampler=Drawing(np.random.RandomState()), **o),
    "nested": lambda **o: DataLoader(DATA, 4, sampler=nested(), **o),
    "nested batches": lambda **o: DataLoader(DATA, batch_sampler=BatchSampler(Nested(nested()), 5, False), **o),
    "own python": lambda **o: DataLoader(DATA, 4, sampler=Drawing(random.Random()), **o),
}


def read(loader, epoch=1, start=0):
    return [batch for _, batch in loader.batches(7 + epoch, epoch, start)]


def indices(batches):
    return [batch["index"].tolist() for batch in batches]


def same(a, b):
    return len(a) == len(b) and all(torch.equal(x[key], y[key]) for x, y in zip(a, b, strict=True) for key in x)


@pytest.mark.parametrize("name", MAKE)
def test_it_has_the_batches_that_torch_would_read(name):
    """As many of the same sizes, of the same samples; a random order is another one."""
    plain, loader = MAKE[name](), ResumableLoader(MAKE[name]())
    expected, found = indices(plain), indices(read(loader))
    assert [len(batch) for batch in found] == [len(batch) for batch in expected]
    is_drawn_with_luck = name in {"weighted", "replacement"}
    if not is_drawn_with_luck:
        assert Counter(chain(*found)) == Counter(chain(*expected))
    if name in {"sequential part", "subset of a subset"}:
        assert found == expected
    else:
        assert found != indices(read(loader, epoch=2))


@pytest.mark.parametrize("options", [{}, {"num_workers": 2}, {"num_workers": 2, "persistent_workers": True}], ids=str)
@pytest.mark.parametrize("name", MAKE)
def test_it_goes_on_from_any_batch_with_the_same_samples(name, options):
    if options and name not in {"batch sampler", "subset", "generator", "weighted"}:
        pytest.skip("workers read alike")
    whole = read(ResumableLoader(MAKE[name]()))
    loader = ResumableLoader(MAKE[name](**options))
    read(loader, epoch=3)
    for start in (1, len(whole) - 1):
        assert same(read(loader, start=start), whole[start:])
    assert ResumableLoader(MAKE[name]()).note is None


def test_the_seed_that_a_script_gives_its_generator_counts():
    def order(seed):
        generator = torch.Generator().manual_seed(seed)
        return indices(read(ResumableLoader(DataLoader(DATA, 4, shuffle=True, generator=generator))))

    assert order(1) == order(1) != order(2)


def test_what_is_set_on_the_data_set_of_a_loader_and_a_collate_function_that_is_exchanged_are_used():
    plain = DataLoader(Noisy(), 4)
    loader = ResumableLoader(plain)
    read(loader)
    plain.dataset.offset = 100
    plain.collate_fn = lambda samples: {"index": torch.tensor([sample["index"] for sample in samples[::-1]])}
    assert indices(read(loader, epoch=2))[0] == [103, 102, 101, 100]
    loader.loader.dataset.offset = 200
    assert plain.dataset.offset == 200


class ManyAtOnce(Noisy):
    def __getitems__(self, numbers):
        return [{"index": number} for number in numbers]


class Unsized:
    def __iter__(self):
        return iter(range(6))


@pytest.mark.parametrize(
    "plain",
    [
        DataLoader(ManyAtOnce(), 4),
        DataLoader(Subset(ManyAtOnce(), range(3)), 4),
        DataLoader(Noisy(), 4, sampler=Unsized()),
    ],
)
def test_what_would_not_mean_the_same_is_read_as_it_is(plain):
    assert ResumableLoader(plain).loader is plain


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        (DataLoader(DATA, 4, shuffle=True), "order was in order, is shuffled"),
        (DataLoader(DATA, 4, drop_last=True), "drop_last was False, is True"),
        (DataLoader(DATA, 4, sampler=WeightedRandomSampler([1.0] * 24, 30)), "order was in order, is Weighted"),
    ],
)
def test_a_changed_order_is_described(changed, what):
    before = ResumableLoader(DataLoader(DATA, 4)).fingerprint()
    assert what in "; ".join(describe_changes(before, ResumableLoader(changed).fingerprint()))


def test_another_number_of_draws_and_another_seed_are_described():
    def of(draws, seed):
        generator = torch.Generator().manual_seed(seed)
        sampler = WeightedRandomSampler([1.0] * 24, draws, generator=generator)
        return ResumableLoader(DataLoader(DATA, 4, sampler=sampler)).fingerprint()

    assert describe_changes(of(30, 1), of(20, 1)) == ["draws was 30, is 20"]
    assert describe_changes(of(30, 1), of(30, 2)) == ["seeds of its generators was [1], is [2]"]


def test_a_plain_loader_of_clouds_of_several_sizes_names_what_joins_them(tmp_path):
    clouds = [{"points": torch.zeros(count, 3)} for count in (3, 4)]
    toy = ToyEpochTrainer(settings(tmp_path), DataLoader(clouds, batch_size=2))
    with pytest.raises(DataError, match=r"several sizes.*collate_fn=collate_packed"):
        toy.run()
