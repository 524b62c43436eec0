"""Clouds as pictures."""

import io

import numpy as np
import pytest
from PIL import Image

from vision3d_engine.core.colors import BLUE, GREEN, RED
from vision3d_engine.report.panels import Panel
from vision3d_engine.report.rendering import png, render

RNG = np.random.default_rng(0)


def cloud(points, color):
    return Panel("", np.asarray(points, float), np.broadcast_to(color, (len(points), 3)))


def share_of(image, color):
    """The share of opaque pixels that have about a colour."""
    opaque = image[image[..., 3] == 255][:, :3].astype(int)
    return (np.abs(opaque - color).max(axis=1) < 60).mean()


def test_a_cloud_fills_its_picture_in_its_colours_on_nothing():
    image = render(cloud(RNG.random((5000, 3)), BLUE), 200, 160)
    assert image.shape == (160, 200, 4)
    assert share_of(image, BLUE) > 0.7
    assert (image[[0, -1]] == 0).all()
    assert 0.2 < (image[..., 3] == 255).mean() < 0.9


def test_what_is_nearer_hides_what_is_behind_it():
    front, back = RNG.random((8000, 3)) * (1, 0.01, 1), RNG.random((8000, 3)) * (1, 0.01, 1) + (0, 0.5, 0)
    both = Panel("", np.concatenate([front, back]), np.repeat([RED, BLUE], 8000, axis=0))  # seen from below y
    alone = render(cloud(front, RED), 200, 200)
    assert share_of(alone, RED) > 0.9
    image = render(both, 200, 200)
    rows, columns = np.nonzero((np.abs(image[..., :3].astype(int) - RED).max(axis=2) < 60) & (image[..., 3] == 255))
    block = image[rows.min() + 30 : rows.max() - 30, columns.min() + 30 : columns.max() - 30]
    assert share_of(block, RED) > 0.8


def test_lines_are_drawn():
    panel = cloud([[0, 0, 0], [1, 0, 1]], BLUE)._replace(edges=np.array([[0, 1]]), edge_colors=GREEN[None])
    assert share_of(render(panel), GREEN) > 0.05


@pytest.mark.parametrize(
    "points", [[[1, 2, 3]], [[1, 2, 3], [1, 2, 3]], [[1e20, 0, 0], [0, 0, 0]], [[1e-20, 0, 0], [0, 0, 0]]]
)
def test_a_point_and_a_cloud_of_any_extent_are_seen(points):
    assert (render(cloud(points, RED))[..., 3] == 255).any()


def test_a_cloud_of_a_million_points_is_thinned_always_alike():
    many = cloud(RNG.random((1_000_000, 3)), RED)
    assert (render(many) == render(many)).all()


def test_pictures_are_png():
    image = render(cloud(RNG.random((100, 3)), RED), 50, 40)
    assert (np.asarray(Image.open(io.BytesIO(png(image)))) == image).all()
