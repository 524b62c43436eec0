import numpy as np
import pytest
import torch

from vision3d_engine import ConfigError
from vision3d_engine.demo.network import ShapeClassifier
from vision3d_engine.demo.shapes import SHAPE_NAMES, ShapeDataset, box, cone, sample_parts, sample_shape


@pytest.mark.parametrize("name", SHAPE_NAMES)
@pytest.mark.parametrize("augment", [True, False])
def test_every_shape_fills_the_unit_sphere(name, augment):
    points = sample_shape(name, 200, np.random.default_rng(0), augment=augment)
    assert points.shape == (200, 3)
    assert points.dtype == np.float32
    assert np.linalg.norm(points, axis=1).max() == pytest.approx(1.0, abs=1e-5)


def test_the_same_seed_gives_the_same_clouds_and_another_seed_others():
    first, same, other = (ShapeDataset(20, 64, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.points, same.points)
    assert not torch.equal(first.points, other.points)


def test_the_kinds_are_balanced():
    assert torch.bincount(ShapeDataset(30, 16).labels).tolist() == [3] * len(SHAPE_NAMES)


def test_an_unknown_shape_names_the_nearest():
    with pytest.raises(ConfigError, match="no shape 'char'; did you mean 'chair'"):
        sample_shape("char", 10, np.random.default_rng(0))


def test_parts_lie_on_their_surfaces():
    rng = np.random.default_rng(0)
    points = box((2, 4, 6)).sample(500, rng)
    assert np.allclose(np.abs(points / [1, 2, 3]).max(axis=1), 1)
    points = cone(1, 1, 2, closed=False).sample(500, rng)
    assert np.allclose(np.hypot(points[:, 0], points[:, 1]), 1)


def test_parts_share_points_by_their_areas():
    near, far = box((1, 1, 1)), box((2, 2, 2), (10, 0, 0))
    points = sample_parts([near, far], 10_000, np.random.default_rng(0))
    assert np.mean(points[:, 0] > 5) == pytest.approx(0.8, abs=0.02)


def test_the_classifier_does_not_depend_on_the_order_of_the_points():
    model = ShapeClassifier().eval()
    points = torch.randn(2, 64, 3)
    order = torch.randperm(64)
    with torch.no_grad():
        assert torch.allclose(model(points), model(points[:, order]), atol=1e-5)
