"""Colours of points: as they are given, of classes, and of numbers."""

import numpy as np
import pytest
import torch

from vision3d_engine import DataError, label_colors, value_colors
from vision3d_engine.core.colors import GREY, as_colors


@pytest.mark.parametrize(
    "given",
    [
        torch.tensor([[0, 128, 255], [255, 0, 0]], dtype=torch.uint8),
        torch.tensor([[0, 128, 255], [255, 0, 0]]),
        torch.tensor([[0.0, 128.0, 255.0], [255.0, 0.0, 0.0]]),
        torch.tensor([[0.0, 128 / 255, 1.0], [1.0, 0.0, 0.0]], requires_grad=True),
        np.array([[0.0, 128 / 255, 1.0], [1.0, 0.0, 0.0]]),
        [[0, 128, 255], [255, 0, 0]],
    ],
)
def test_colors_are_0_to_255_or_as_floats_up_to_1_shares_of_it(given):
    colors = as_colors(given, 2)
    assert colors.dtype == np.uint8
    assert colors.tolist() == [[0, 128, 255], [255, 0, 0]]


def test_colors_of_bfloat16_are_read_and_whole_numbers_up_to_1_stay_nearly_black():
    assert as_colors(torch.ones(1, 3, dtype=torch.bfloat16), 1).tolist() == [[255, 255, 255]]
    assert as_colors(torch.ones(1, 3, dtype=torch.int64), 1).tolist() == [[1, 1, 1]]


def test_one_color_serves_all_points_also_none():
    assert as_colors((255, 0, 10), 3).tolist() == [[255, 0, 10]] * 3
    assert as_colors((255, 0, 10), 0).shape == (0, 3)
    assert as_colors(np.zeros((0, 3)), 0).shape == (0, 3)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (torch.zeros(4, 3), r"colors: got a tensor of shape \(4, 3\) in float32, expected numbers of shape \(5, 3\)"),
        (torch.zeros(5, 4), r"got a tensor of shape \(5, 4\) in float32, expected numbers of shape \(5, 3\)"),
        (np.zeros((5, 3), dtype=bool), "in bool, expected numbers"),
        (np.full((5, 3), -0.1), "got numbers from -0.1 to -0.1, expected 0 to 1 or 0 to 255. Scale or clip them"),
        (np.full((5, 3), 256), "got numbers from 256 to 256"),
        (np.full((5, 3), np.nan), "got numbers from nan to nan"),
    ],
)
def test_wrong_colors_are_told_with_what_was_got_and_expected(given, said):
    with pytest.raises(DataError, match=said):
        as_colors(given, 5)


def test_labels_have_256_different_colors_and_negative_ones_are_grey():
    colors = label_colors(torch.arange(-2, 257))
    assert colors[:2].tolist() == [GREY.tolist()] * 2
    assert len(np.unique(colors[2:258], axis=0)) == 256
    assert not (colors[2:258] == GREY).all(axis=1).any()
    assert colors[258].tolist() == colors[2].tolist()


def test_the_first_colors_are_fixed_and_far_from_each_other():
    first = label_colors(np.arange(20)).astype(int)
    assert first[:3].tolist() == [[60, 105, 195], [105, 240, 0], [255, 0, 0]]
    apart = np.linalg.norm(first[:, None] - first[None], axis=-1) + np.eye(20) * 1000
    assert apart.min() > 60


def test_labels_take_a_palette_of_the_user():
    assert label_colors([1, 0, -1], [(255, 0, 0), (0, 255, 0)]).tolist() == [[0, 255, 0], [255, 0, 0], GREY.tolist()]
    with pytest.raises(DataError, match="got the class 2, but the palette has 2 colours"):
        label_colors([2], [(255, 0, 0), (0, 255, 0)])


def test_labels_must_be_whole_numbers():
    with pytest.raises(DataError, match=r"labels: got a tensor of shape \(2,\) in float32, expected whole numbers"):
        label_colors(torch.zeros(2))


def test_values_have_the_colors_of_viridis():
    matplotlib = pytest.importorskip("matplotlib")
    share = np.linspace(0, 1, 256)
    expected = matplotlib.colormaps["viridis"](share)[:, :3] * 255
    assert np.abs(value_colors(share * 7 - 3) - expected).max() < 5


def test_values_are_scaled_between_the_ends_and_nan_is_grey():
    dark, bright = value_colors([0.0, 1.0])
    values = torch.tensor([float("nan"), -5.0, 2.0, 9.0, float("inf"), float("-inf")])
    found = value_colors(values, lo=-5.0, hi=2.0)
    expected = [GREY, dark, bright, bright, bright, dark]
    assert found.tolist() == np.stack(expected).tolist()
    assert value_colors(values)[3].tolist() == bright.tolist()


def test_values_that_are_all_alike_or_not_finite_or_none_have_colors_too():
    assert len(np.unique(value_colors([3, 3]), axis=0)) == 1
    assert value_colors([float("nan")] * 2).tolist() == [GREY.tolist()] * 2
    assert value_colors([]).shape == (0, 3)
    with pytest.raises(DataError, match=r"values: got .* expected real numbers"):
        value_colors(torch.zeros(2, dtype=torch.complex64))
