"""Distances between sets of points."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from tests.metrics.merging import assert_same, merged, taken_in
from vision3d_engine import ResultError
from vision3d_engine.metrics.point_sets import PointSetDistances, nearest_distances


def make():
    return PointSetDistances(threshold=0.3)


def reference(prediction, target):
    """Return the numbers of one shape: Chamfer distances, F-score, precision, recall."""
    distances = np.linalg.norm(prediction[:, None] - target, axis=-1)
    there, back = distances.min(1), distances.min(0)
    precision, recall = np.mean(there < 0.3), np.mean(back < 0.3)
    f_score = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return [(there.mean() + back.mean()) / 2, (there**2).mean() + (back**2).mean(), f_score, precision, recall]


@given(st.integers(0, 2**16), st.lists(st.integers(0, 4), max_size=3), st.floats(0.05, 3))
def test_the_means_are_those_of_all_shapes_at_once_however_they_are_split(seed, cuts, spread):
    generator = np.random.default_rng(seed)
    sizes = generator.integers(1, 9, (4, 2))
    shapes = [tuple(generator.normal(size=(size, 3)) * spread for size in pair) for pair in sizes]
    total = merged(make, shapes, cuts)
    assert_same(total, taken_in(make, shapes))
    expected = np.mean([reference(*shape) for shape in shapes], axis=0)
    assert list(total.compute().values()) == pytest.approx(expected.tolist())


def test_the_nearest_distances_are_those_of_scipy():
    spatial = pytest.importorskip("scipy.spatial", reason="scipy is not installed")
    points, others = np.random.default_rng(0).normal(size=(2, 300, 3))
    found = nearest_distances(torch.from_numpy(points)[None], torch.from_numpy(others)[None], max_pairs=1000)
    assert found[0].numpy() == pytest.approx(spatial.KDTree(others).query(points)[0], rel=1e-12)


def test_the_numbers_of_a_case_that_can_be_read_off():
    metric = PointSetDistances(threshold=1.5)
    metric.update(torch.tensor([[0.0, 0, 0], [0, 0, 4]]), torch.tensor([[0.0, 0, 1]]))
    found = metric.compute()
    assert found["CD-L1"] == pytest.approx(((1 + 3) / 2 + 1) / 2)
    assert found["CD-L2"] == pytest.approx((1 + 9) / 2 + 1)
    assert (found["precision"], found["recall"]) == (0.5, 1)
    assert found["F-score"] == pytest.approx(2 / 3)


def test_sets_without_a_near_point_have_the_f_score_zero_and_no_sets_are_nan():
    metric = make()
    assert all(math.isnan(value) for value in metric.compute().values())
    metric.update(torch.zeros(2, 3), torch.ones(2, 3))
    assert metric.compute()["F-score"] == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int64])
def test_a_batch_of_any_type_counts_like_its_shapes(dtype):
    generator = torch.Generator().manual_seed(0)
    prediction, target = (torch.randn(3, size, 3, generator=generator).mul(4).to(dtype) for size in (6, 5))
    assert_same(taken_in(make, [(prediction, target)]), taken_in(make, list(zip(prediction, target, strict=True))))


class LargestTensor(TorchDispatchMode):
    """Notes how many elements the largest tensor has that comes out of any operation."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        self.numel = max([self.numel, *(each.numel() for each in [found] if isinstance(each, torch.Tensor))])
        return found


def test_no_more_distances_than_allowed_are_held_at_once():
    points, others = torch.randn(2, 50, 3), torch.randn(2, 40, 3)
    with LargestTensor() as largest:
        found = nearest_distances(points, others, max_pairs=1000)
    assert largest.numel <= 1000
    assert torch.equal(found, nearest_distances(points, others))
    assert torch.equal(found, nearest_distances(points, others, max_pairs=1))


def test_small_distances_far_from_the_origin_are_kept():
    points = torch.rand(500, 3, dtype=torch.float64).mul(64).round() / 64 + 1000
    assert nearest_distances(points[None].float(), points[None].float() + 2**-9).max() == pytest.approx(3**0.5 / 2**9)


@pytest.mark.parametrize("shapes", [((5, 2), (5, 3)), ((0, 3), (5, 3)), ((2, 5, 3), (3, 5, 3)), ((5, 3), (1, 5, 3))])
def test_shapes_that_do_not_fit_are_an_error_that_names_them(shapes):
    with pytest.raises(ResultError, match=r"PointSetDistances.update got points \(.*none of them empty"):
        make().update(*(torch.zeros(shape) for shape in shapes))
