"""Fragments of a scene: they have every point, keep their bound, and are the same every time."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vision3d_engine import DataError
from vision3d_engine.data.fragments import (
    count_points,
    overlapping_blocks,
    spheres,
    take_points,
    voxel_picks,
    voxel_subsample,
)

# Coordinates on a coarse grid fall onto the borders of blocks and voxels, and onto each other.
NUMBERS = st.one_of(st.integers(-8, 8).map(lambda n: n / 4), st.floats(-3, 3, width=32))
CLOUDS = st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS), min_size=1, max_size=60).map(torch.tensor)
SIZES = st.sampled_from([0.1, 0.25, 0.3, 1.0, 2.5, 100.0])
BOUNDS = st.sampled_from([None, 1, 2, 7, 1000])


def assert_covered(points, fragments, bound=None):
    assert torch.cat(list(fragments)).unique().tolist() == list(range(len(points)))
    assert all(0 < len(each) <= (bound or len(points)) for each in fragments)
    assert all(len(each.unique()) == len(each) for each in fragments)


@given(CLOUDS, SIZES, st.sampled_from([0.1, 0.3, 1 / 3, 0.5, 1.0]), BOUNDS)
def test_blocks_have_every_point_and_keep_the_bound(points, size, overlap, bound):
    blocks = list(overlapping_blocks(points, size, size * overlap, bound))
    assert_covered(points, blocks, bound)
    for block in blocks:
        extent = points[block, :2].amax(0) - points[block, :2].amin(0)
        assert (extent <= size + 1e-5).all()


def test_blocks_overlap_by_half_unless_told_otherwise():
    line = torch.stack([torch.arange(8) / 4, torch.zeros(8), torch.zeros(8)], dim=1)
    assert [block.tolist() for block in overlapping_blocks(line, 1.0)] == [[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 7]]


def test_the_shares_of_a_block_are_spread_over_all_of_it():
    points = torch.rand(10, 3)
    assert [share.tolist() for share in overlapping_blocks(points, 2.0, max_points=4)] == [
        [0, 3, 6, 9],
        [1, 4, 7],
        [2, 5, 8],
    ]


@given(CLOUDS, SIZES, BOUNDS, st.sampled_from([1e-3, 0.5, 2.0]))
def test_spheres_cover_every_point_as_often_as_asked_and_keep_the_bound(points, radius, bound, coverage):
    found = list(spheres(points, radius, bound, coverage))
    assert_covered(points, [index for index, _ in found], bound)
    covered = torch.zeros(len(points))
    for index, weight in found:
        assert ((weight > 0) & (weight <= 1)).all()
        covered[index] += weight
    assert (covered >= coverage).all()


def test_the_weights_of_a_sphere_fall_with_the_distance_and_the_next_one_lies_where_least_is_known():
    line = torch.stack([torch.arange(5) / 2, torch.zeros(5), torch.zeros(5)], dim=1)
    found = [(index.tolist(), weight.tolist()) for index, weight in spheres(line, 1.0)]
    assert found[0] == ([0, 1], [1.0, 0.75])
    assert found[1] == ([1, 2, 3], [0.75, 1.0, 0.75])


def test_more_points_at_one_place_than_a_sphere_may_have_are_covered_all_the_same():
    found = list(spheres(torch.zeros(9, 3), 1.0, max_points=2))
    assert_covered(torch.zeros(9, 3), [index for index, _ in found], 2)


@given(CLOUDS, SIZES)
def test_voxel_picks_take_one_point_of_every_voxel_until_all_are_taken(points, size):
    picks = list(voxel_picks(points, size))
    assert_covered(points, picks)
    cells = (points.double() / size).floor()
    voxels, counts = cells.unique(dim=0, return_counts=True)
    assert len(picks) == counts.max()
    for pick in picks:
        assert torch.equal(cells[pick].unique(dim=0), voxels)
        assert len(pick) == len(voxels)


def test_voxels_far_apart_are_told_apart():
    points = torch.tensor([[0.0, 0, 0], [1e12, 1e12, 1e12], [-1e12, 1e12, 0]], dtype=torch.float64)
    (pick,) = voxel_picks(points, 1e-9)
    assert sorted(pick.tolist()) == [0, 1, 2]


@given(CLOUDS, SIZES)
def test_a_subsample_has_one_point_a_voxel_and_says_which_stands_for_each(points, size):
    index, inverse = voxel_subsample(points, size)
    cells = (points.double() / size).floor()
    assert len(index) == len(cells.unique(dim=0))
    assert torch.equal(cells[index][inverse], cells)


def far_off(dtype):
    """Points in a box of 1,000 that lies far from the origin, as in coordinates of a map."""
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(500, 3, generator=generator, dtype=torch.float64) * 1000 + 5e8).to(dtype)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.float32, torch.float64])
def test_bounds_hold_far_from_the_origin_for_points_of_any_type(dtype):
    points = far_off(dtype)
    exact = points.double()
    index, inverse = voxel_subsample(points, 20)
    assert (exact[index][inverse] - exact).norm(dim=1).max() <= 20 * 3**0.5
    assert len(index) == len((exact / 20).floor().unique(dim=0))
    for block in overlapping_blocks(points, 20):
        assert (exact[block].amax(0) - exact[block].amin(0))[:2].max() <= 20
    for sphere, weight in spheres(points, 50):
        center = exact[sphere[weight.argmax()]]
        assert (exact[sphere] - center).norm(dim=1).max() <= 50


def test_voxels_far_from_the_origin_are_not_made_coarser_by_the_rounding_of_float32():
    points = (torch.rand(2000, 3, generator=torch.Generator().manual_seed(0)).double() + 1e6).float()
    cells = (points.double() / 0.02).floor()
    assert len(voxel_subsample(points, 0.02)[0]) == len(cells.unique(dim=0))


@pytest.mark.parametrize(
    "cut",
    [
        lambda points: list(overlapping_blocks(points, 1.0, 0.4, 50)),
        lambda points: [torch.cat(each) for each in spheres(points, 0.7, 60)],
        lambda points: list(voxel_picks(points, 0.2)),
    ],
    ids=["blocks", "spheres", "picks"],
)
def test_a_scene_is_cut_alike_every_time(cut):
    points = torch.randn(500, 3, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(1)
    first = cut(points)
    torch.manual_seed(2)
    second = cut(points)
    assert len(first) == len(second)
    assert all(map(torch.equal, first, second))


def test_a_fragment_has_the_rows_of_what_has_one_row_a_point():
    scene = {"coord": torch.rand(5, 3), "labels": torch.arange(5), "pose": torch.eye(4), "name": "hall"}
    fragment = take_points(scene, torch.tensor([4, 1]))
    assert set(fragment) == {"coord", "labels", "index"}
    assert torch.equal(fragment["coord"], scene["coord"][[4, 1]])
    assert fragment["labels"].tolist() == fragment["index"].tolist() == [4, 1]


def test_a_scene_without_a_cloud_is_refused():
    with pytest.raises(DataError, match=r"no cloud: expected \(N, C\) under one of the names points, .* got 'voxels'"):
        count_points({"voxels": torch.rand(5, 3)})


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        (lambda: overlapping_blocks(torch.rand(5, 3), 1.0, 2.0), "leave points out between them"),
        (lambda: overlapping_blocks(torch.rand(5, 3), 0.0), "size is 0.0"),
        (lambda: overlapping_blocks(torch.rand(5, 3), 1.0, max_points=0), "max_points is 0"),
        (lambda: spheres(torch.rand(5, 3), -1.0), "radius is -1.0"),
        (lambda: voxel_picks(torch.tensor([[0, 0, float("nan")]]), 1.0), "1 of 1 points of a scene hold NaN"),
        (lambda: voxel_picks(torch.rand(0, 3), 1.0), "expected a tensor .N, 3., N above 0"),
        (lambda: voxel_subsample([[0.0, 0, 0]], 1.0), "expected a tensor"),
    ],
)
def test_what_cannot_cut_a_scene_is_refused_at_once(cut, message):
    with pytest.raises(DataError, match=message):
        cut()
