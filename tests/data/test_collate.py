"""Samples joined to packed batches."""

import pickle
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import Dataset

from vision3d_engine import DataError, build_dataloader, collate_packed, split_batch
from vision3d_engine.core.compare import differences
from vision3d_engine.core.tree import map_leaves, to_device


def rows(start, count, width=3):
    """Points that differ from all others of a batch."""
    return torch.arange(start, start + count, dtype=torch.float32)[:, None].expand(count, width)


def equal(found, expected):
    return list(differences(found, expected)) == []


def test_clouds_of_any_size_are_joined_and_the_rest_is_stacked_or_kept():
    samples = [
        {"points": rows(0, 3), "label": torch.arange(3), "pose": torch.eye(4), "class": 7, "name": "a", "boxes": [1]},
        {"points": rows(3, 2), "label": torch.arange(2), "pose": torch.eye(4), "class": 8, "name": "b", "boxes": []},
    ]
    expected = {
        "points": rows(0, 5),
        "label": torch.tensor([0, 1, 2, 0, 1]),
        "pose": torch.eye(4).expand(2, 4, 4),
        "class": torch.tensor([7, 8]),
        "name": ["a", "b"],
        "boxes": [[1], []],
        "lengths": [3, 2],
    }
    batch = collate_packed(samples)
    assert equal(batch | {"lengths": list(batch["lengths"])}, expected)


def test_offset_and_batch_are_written_when_asked_for_or_when_samples_have_them():
    samples = [{"coord": rows(0, n), "offset": torch.tensor([n])} for n in (3, 0, 2)]
    batch = collate_packed(samples, batch=True)
    assert batch["lengths"] == [3, 0, 2]
    assert batch["offset"].tolist() == [3, 3, 5]
    assert batch["batch"].tolist() == [0, 0, 0, 2, 2]
    assert "batch" not in collate_packed(samples, offset=True)


def test_dicts_within_have_clouds_of_their_own_or_share_the_one_around():
    samples = [
        {"ref": {"points": rows(0, n)}, "src": {"points": rows(0, n + 1), "labels": {"of points": torch.arange(n + 1)}}}
        for n in (3, 5)
    ]
    batch = collate_packed(samples)
    assert batch["ref"]["lengths"] == [3, 5]
    assert batch["src"]["lengths"] == [4, 6]
    assert batch["src"]["labels"]["of points"].tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 4, 5]
    assert "lengths" not in batch["src"]["labels"]


def test_a_pyramid_of_kpconv_is_joined_level_by_level():
    samples = [
        {
            "points": [rows(0, fine), rows(0, coarse)],
            "neighbors": [torch.zeros(fine, 5), torch.zeros(coarse, 5)],
            "pools": [torch.zeros(coarse, 5), torch.zeros(0, 1)],
            "features": torch.ones(fine, 2),
        }
        for fine, coarse in [(6, 3), (4, 1), (5, 2)]
    ]
    batch = collate_packed(samples, offset=True)
    assert batch["lengths"] == [[6, 4, 5], [3, 1, 2]]
    assert [each.tolist() for each in batch["offset"]] == [[6, 10, 15], [3, 4, 6]]
    assert [len(each) for each in batch["points"]] == [len(each) for each in batch["neighbors"]] == [15, 6]
    assert [tuple(each.shape) for each in batch["pools"]] == [(6, 5), (0, 1)]
    assert batch["features"].shape == (15, 2)


def test_an_array_beside_a_pyramid_is_not_taken_for_rows_of_a_coarse_level():
    samples = [{"points": [rows(0, 9), rows(0, 4)], "pose": torch.eye(4)}]
    assert collate_packed(samples)["pose"].shape == (1, 4, 4)


def test_a_list_of_dicts_with_clouds_is_one_of_levels():
    samples = [{"levels": [{"points": rows(0, n)}, {"points": rows(0, 1)}]} for n in (3, 4)]
    assert [level["lengths"] for level in collate_packed(samples)["levels"]] == [[3, 4], [1, 1]]
    assert collate_packed(samples, stacked=["levels"])["levels"] == [sample["levels"] for sample in samples]


def test_arguments_say_what_is_a_cloud_and_what_has_no_row_a_point():
    samples = [{"vertices": rows(n, 4), "pose": torch.eye(4)} for n in range(2)]
    batch = collate_packed(samples, clouds=["vertices"], stacked=["pose"])
    assert batch["vertices"].shape == (8, 3)
    assert batch["pose"].shape == (2, 4, 4)
    assert collate_packed(samples, clouds=["vertices"])["pose"].shape == (8, 4)


def test_arrays_of_numpy_become_tensors_of_their_dtype_also_views_and_read_only_ones():
    points = np.arange(12, dtype=np.float64).reshape(4, 3)[::-1]
    points.flags.writeable = False
    batch = collate_packed([{"points": points, "pose": np.eye(3, dtype=np.float16), "scale": np.float32(2)}])
    assert equal(batch["points"], torch.tensor(points.copy()))
    assert equal(batch["pose"], torch.eye(3, dtype=torch.float16)[None])
    assert equal(batch["scale"], torch.tensor([2.0]))


def test_a_loader_with_workers_collates_with_it():
    samples = [{"points": rows(0, n)} for n in (3, 2, 4)]
    collate = partial(collate_packed, offset=True)
    loader = build_dataloader(samples, batch_size=2, num_workers=1, collate_fn=collate)  # type: ignore[arg-type]
    assert [batch["offset"].tolist() for batch in loader] == [[3, 5], [4]]


CLOUD = {"points": rows(0, 3)}


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([], "no samples"),
        ([CLOUD, None], "None: samples must be dicts. Let the data set"),
        (
            [{"scan": CLOUD}, {"scan": CLOUD | {"labels": 1}}],
            r"samples\[1\]\['scan'\]: .* points, labels, samples\[0\]\['scan'\] a dict with the keys points\. Return",
        ),
        (
            [CLOUD | {"y": 1}, CLOUD | {"y": 1}, CLOUD | {"y": 1.5}],
            r"samples\[2\]\['y'\]: it is 1.5 .*\. Return one type",
        ),
        ([CLOUD | {"y": torch.ones(1)}, CLOUD | {"y": None}], r"samples\[1\]\['y'\]: it is None, .* Return one type"),
        (
            [CLOUD, {"points": rows(0, 2).double()}],
            r"samples\[1\]\['points'\]: .*\(2, 3\) of float64, .*\(3, 3\) of float32\. Return one dtype",
        ),
        ([{"a": {"points": rows(0, 3)}}, {"a": {"points": rows(0, 2, 4)}}], r"\['a'\]\['points'\]: .*as many features"),
        (
            [CLOUD | {"pairs": torch.zeros(7, 2)}, CLOUD | {"pairs": torch.zeros(8, 2)}],
            r"samples\[1\]\['pairs'\]: .*\(8, 2\).*\(7, 2\).* put it beside its cloud, name the cloud in clouds=",
        ),
        ([{"points": [rows(0, 3)] * 2}, {"points": [rows(0, 3)] * 3}], r"samples\[1\]\['points'\]: .*as many levels"),
        ([{"parts": [CLOUD] * 2}, {"parts": [CLOUD]}], r"samples\[1\]\['parts'\]: .*as many levels.* stacked="),
        ([CLOUD, CLOUD | {"points": None}], r"samples\[1\]\['points'\]: it is None"),
        (
            [CLOUD | {"offset": torch.tensor([2])}],
            r"samples\[0\]\['offset'\]: it is a tensor of shape \(1,\), but .* Leave it out, or give it another name",
        ),
    ],
)
def test_what_does_not_go_together_is_an_error_that_names_sample_and_path(samples, message):
    with pytest.raises(DataError, match=message):
        collate_packed(samples)


def moved_like_a_batch(batch):
    """What becomes of a batch between the process that collates it and a step."""
    return to_device(pickle.loads(pickle.dumps(batch)), "cpu")


@pytest.mark.parametrize("sizes", [[1, 1], [2, 0], [1], [3, 0, 0]])
def test_clouds_with_as_many_points_as_there_are_samples_are_cut_as_they_were_joined(sizes):
    samples = [
        {"coord": rows(10 * i, n), "segment": torch.arange(n), "class": torch.tensor(i)} for i, n in enumerate(sizes)
    ]
    batch = moved_like_a_batch({"scan": collate_packed(samples, offset=True, batch=True)})
    cases, _ = split_batch(batch, {})
    for case, sample in zip(cases, samples, strict=True):
        assert equal(without_packing(case["scan"]), sample)
        assert type(case["scan"]["lengths"]) is int


def test_what_a_script_has_changed_in_a_batch_is_read_anew():
    batch = collate_packed([{"points": rows(0, 2), "colour": rows(0, 2)}, {"points": rows(5, 3), "colour": rows(5, 3)}])
    batch["colour"] = torch.tensor([7, 8])
    batch["points"], batch["lengths"] = rows(0, 4), [1, 3]
    cases, _ = split_batch(batch, {})
    assert [case["colour"].item() for case in cases] == [7, 8]
    assert [len(case["points"]) for case in cases] == [1, 3]


# ------------------------------------------------------------------------------------------- the law


class Drawn:
    """Draws samples that are made alike: each part is a function of the sizes of the clouds around it in a sample."""

    def __init__(self, draw):
        self.draw = draw
        self.count = draw(st.integers(1, 4))
        self.largest = draw(st.sampled_from([1, 2, 3, 6]))
        self.numbers = iter(range(10**9))

    def sizes(self):
        """Sizes of a cloud; many have as many points in all as there are samples, or as another cloud."""
        return [self.draw(st.integers(0, self.largest)) for _ in range(self.count)]

    def array(self, shape):
        dtype = self.draw(st.sampled_from([torch.float32, torch.int64, torch.float16]))
        number = next(self.numbers)
        values = [torch.full(each, number * 10 + case).to(dtype) for case, each in enumerate(shape)]
        return values if self.draw(st.booleans()) else [value.numpy() for value in values]

    def rows_of(self, sizes):
        width = self.draw(st.sampled_from([(), (2,), (3, 2)]))
        return self.array([(size, *width) for size in sizes])

    def cloud(self, sizes):
        return self.array([(size, 3) for size in sizes])

    def whole(self):
        """What has no row a point."""
        kinds = {
            "pose": lambda: self.array([(7, 7)] * self.count),
            "colour": lambda: self.array([(2,)] * self.count),
            "number": lambda: [self.draw(st.sampled_from([2, 5]))] * self.count,
            "rate": lambda: [0.1 * case for case in range(self.count)],
            "flag": lambda: [bool(case % 2) for case in range(self.count)],
            "text": lambda: [f"case {case}" for case in range(self.count)],
            "none": lambda: [None] * self.count,
            "list": lambda: [[case, "x"] * case for case in range(self.count)],
            "boxes": lambda: [[torch.ones(case, 2)] * (case % 3) for case in range(self.count)],
        }
        name = self.draw(st.sampled_from(sorted(kinds)))
        return name, kinds[name]()

    def nest(self, depth, around=()):
        """One dict a sample, with or without a cloud or a pyramid."""
        kind = self.draw(st.sampled_from(["cloud", "pyramid", "none"]))
        held: dict[str, list[Any]] = {}
        if kind == "cloud":
            around = (*around, sizes := self.sizes())
            held["points"] = self.cloud(sizes)
        if kind == "pyramid":
            levels = [self.sizes() for _ in range(self.draw(st.integers(1, 3)))]
            around = (*around, levels[0])
            for key, make, chosen in (
                ("points", self.cloud, levels),
                ("neighbors", self.rows_of, levels),
                ("pools", self.rows_of, levels[1:]),
            ):
                if chosen:
                    held[key] = [list(each) for each in zip(*map(make, chosen), strict=True)]
        for number, sizes in enumerate(around):
            if self.draw(st.booleans()):
                held[f"feature {number}"] = self.rows_of(sizes)
        held |= dict(self.whole() for _ in range(self.draw(st.integers(0, 3))))
        if depth:
            held |= {f"inner {n}": self.nest(depth - 1, around) for n in range(self.draw(st.integers(0, 2)))}
            if self.draw(st.booleans()):
                level = self.cloud(sizes := self.sizes())
                held["levels"] = [[{"points": points}] for points in level]
        return [{key: held[key][case] for key in held} for case in range(self.count)]


def as_tensors(nest):
    """What a sample is in a batch of its own: arrays and numbers are tensors."""
    kinds = {int: torch.int64, float: torch.float64, bool: torch.bool}

    def tensor(leaf):
        if isinstance(leaf, np.ndarray):
            return torch.from_numpy(leaf)
        return torch.tensor(leaf, dtype=kinds[type(leaf)]) if type(leaf) in kinds else leaf

    return {
        key: as_tensors(part)
        if isinstance(part, dict)
        else part
        if key in {"list", "boxes"}
        else map_leaves(tensor, part)
        for key, part in nest.items()
    }


def without_packing(nest):
    if isinstance(nest, dict):
        return {key: without_packing(part) for key, part in nest.items() if key not in {"lengths", "offset", "batch"}}
    return [without_packing(part) for part in nest] if isinstance(nest, list) else nest


@st.composite
def drawn_samples(draw):
    samples = Drawn(draw).nest(depth=2)
    return [{"index": torch.tensor(index)} | sample for index, sample in enumerate(samples)]


@given(samples=drawn_samples(), offset=st.booleans(), batch=st.booleans())
def test_splitting_what_was_collated_gives_the_samples(samples, offset, batch):
    collated = collate_packed(samples, offset=offset, batch=batch)
    cases, _ = split_batch(collated, {})
    assert len(cases) == len(samples)
    for case, sample in zip(cases, samples, strict=True):
        assert list(differences(without_packing(case), as_tensors(sample))) == []


@given(samples=drawn_samples(), offset=st.booleans(), batch=st.booleans())
def test_cases_may_be_collated_again(samples, offset, batch):
    collated = collate_packed(samples, offset=offset, batch=batch)
    cases, _ = split_batch(collated, {})
    assert list(differences(collate_packed(cases), collated)) == []


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("options", [{}, {"batch_points": 99}])
def test_clouds_of_several_sizes_under_the_default_collate_are_an_error_that_names_the_packed_one(workers, options):
    class Clouds(Dataset):
        lengths = (3, 4)

        def __len__(self):
            return 2

        def __getitem__(self, index):
            return {"points": torch.zeros(self.lengths[index], 3)}

    loader = build_dataloader(Clouds(), 2, num_workers=workers, **options)
    with pytest.raises(DataError, match=r"several sizes.*collate_fn=collate_packed"):
        list(loader)
