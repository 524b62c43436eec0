"""Ten kinds of everyday shapes as point clouds: boxes and cones, in random proportions, seen from a random side."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy import ndarray
from numpy.random import Generator
from torch.utils.data import Dataset

from vision3d_engine.core.errors import ConfigError, did_you_mean


class Part(NamedTuple):
    """A surface: its area, and a function that samples ``n`` points ``(n, 3)`` on it."""

    area: float
    sample: Callable[[int, Generator], ndarray]


def box(size: Sequence[float], center: Sequence[float] = (0, 0, 0)) -> Part:
    """Return the surface of a box with the given edge lengths."""
    a, b, c = size
    faces = np.array([b * c, a * c, a * b]) * 2

    def sample(n: int, rng: Generator) -> ndarray:
        points = rng.uniform(-0.5, 0.5, (n, 3))
        points[np.arange(n), rng.choice(3, n, p=faces / faces.sum())] = rng.choice([-0.5, 0.5], n)
        return points * size + center

    return Part(float(faces.sum()), sample)


def cone(
    bottom: float, top: float, height: float, center: Sequence[float] = (0, 0, 0), axis: int = 2, closed: bool = True
) -> Part:
    """Return a cone whose ends have these radii (a cylinder when they are equal) along an axis, with its end discs."""
    areas = np.pi * np.array([(bottom + top) * np.hypot(height, bottom - top), closed * bottom**2, closed * top**2])

    def sample(n: int, rng: Generator) -> ndarray:
        kind = rng.choice(3, n, p=areas / areas.sum())
        along = np.where(kind == 0, rng.uniform(0, 1, n), kind - 1.0)
        inwards = np.where(kind == 0, 1.0, np.sqrt(rng.uniform(0, 1, n)))
        radius, angle = (bottom + (top - bottom) * along) * inwards, rng.uniform(0, 2 * np.pi, n)
        points = np.stack([radius * np.cos(angle), radius * np.sin(angle), (along - 0.5) * height], axis=1)
        return np.roll(points, axis - 2, axis=1) + center

    return Part(float(areas.sum()), sample)


leg, wheel = partial(box, (0.09, 0.09, 0.85)), partial(cone, 0.21, 0.21, 0.12, axis=1)


def four(part: Callable[..., Part], x: float, y: float, z: float) -> list[Part]:
    """Return a leg or wheel at each of four corners."""
    return [part(center=(side_x * x, side_y * y, z)) for side_x in (-1, 1) for side_y in (-1, 1)]


_SHAPES: dict[str, list[Part]] = {
    "airplane": [
        cone(0.14, 0.08, 2.0, axis=0),
        box((0.35, 1.8, 0.04), (0.1, 0, 0)),
        box((0.22, 0.6, 0.03), (-0.9, 0, 0.05)),
        box((0.22, 0.03, 0.35), (-0.9, 0, 0.2)),
    ],
    "chair": [box((1, 1, 0.08)), box((0.08, 1, 1), (-0.5, 0, 0.5)), *four(leg, 0.45, 0.45, -0.42)],
    "table": [box((1.6, 1.1, 0.08)), *four(leg, 0.72, 0.5, -0.42)],
    "lamp": [
        cone(0.4, 0.25, 0.06),
        cone(0.04, 0.04, 1.5, (0, 0, 0.75)),
        cone(0.5, 0.22, 0.6, (0, 0, 1.5), closed=False),
    ],
    "mug": [
        cone(0.48, 0.52, 1.0, closed=False),
        cone(0.48, 0.48, 0.02, (0, 0, -0.5)),
        box((0.08, 0.1, 0.6), (0.82, 0, 0)),
        box((0.34, 0.1, 0.08), (0.65, 0, 0.3)),
        box((0.34, 0.1, 0.08), (0.65, 0, -0.3)),
    ],
    "bottle": [
        cone(0.32, 0.32, 1.0),
        cone(0.32, 0.1, 0.35, (0, 0, 0.67), closed=False),
        cone(0.1, 0.1, 0.45, (0, 0, 1.07)),
    ],
    "car": [box((1.95, 0.85, 0.38)), box((0.95, 0.75, 0.36), (-0.05, 0, 0.37)), *four(wheel, 0.62, 0.43, -0.19)],
    "bed": [
        box((2.0, 1.35, 0.28)),
        box((0.08, 1.35, 0.75), (-1, 0, 0.15)),
        box((0.08, 1.35, 0.42), (1, 0, 0)),
        box((0.3, 0.95, 0.12), (-0.72, 0, 0.2)),
    ],
    "guitar": [
        cone(0.45, 0.45, 0.2),
        cone(0.32, 0.32, 0.2, (0.5, 0, 0)),
        box((1.05, 0.08, 0.05), (1.3, 0, 0.03)),
        box((0.22, 0.16, 0.05), (1.85, 0, 0.03)),
    ],
    "sofa": [
        box((0.8, 1.9, 0.36)),
        box((0.22, 1.9, 0.85), (-0.4, 0, 0.25)),
        box((0.8, 0.2, 0.58), (0, -0.95, 0.1)),
        box((0.8, 0.2, 0.58), (0, 0.95, 0.1)),
    ],
}
SHAPE_NAMES = tuple(_SHAPES)


def sample_parts(parts: Sequence[Part], num_points: int, rng: Generator) -> ndarray:
    """Return points ``(num_points, 3)`` on the parts, each getting its share by area."""
    areas = np.array([part.area for part in parts])
    counts = rng.multinomial(num_points, areas / areas.sum())
    return np.concatenate([part.sample(int(count), rng) for part, count in zip(parts, counts, strict=True)])


def sample_shape(name: str, num_points: int, rng: Generator, augment: bool = True) -> ndarray:
    """Return a cloud ``(num_points, 3)``, float32, of a shape with random proportions, inside the unit sphere.

    Args:
        name: one of `SHAPE_NAMES`.
        num_points: number of points.
        rng: where all randomness comes from.
        augment: turn it about the vertical axis, cut a side away as a scanner would miss it, and add noise.

    Raises:
        ConfigError: for an unknown name.
    """
    if name not in _SHAPES:
        message = f"no shape '{name}'{did_you_mean(name, SHAPE_NAMES)} (shapes: {', '.join(SHAPE_NAMES)})"
        raise ConfigError(message)
    missing = rng.uniform(0.0, 0.15) if augment else 0.0
    points = sample_parts(_SHAPES[name], math.ceil(num_points / (1 - missing)), rng) * rng.uniform(0.75, 1.3, 3)
    if augment:
        points = _as_scanned(points, num_points, rng)
    points = points - points.mean(axis=0)
    return (points / np.linalg.norm(points, axis=1).max()).astype(np.float32)


def _as_scanned(points: ndarray, keep: int, rng: Generator) -> ndarray:
    """Turn points about the vertical axis, keep those on one side of a random plane, in random order, and add noise."""
    angle = rng.uniform(0, 2 * np.pi)
    c, s = np.cos(angle), np.sin(angle)
    points = points @ np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])
    nearest = np.argpartition(points @ rng.normal(size=3), keep - 1)[:keep]
    return points[rng.permutation(nearest)] + rng.normal(scale=0.015, size=(keep, 3))


class ShapeDataset(Dataset):
    """Clouds of all shapes in turn: ``{"points": (N, 3) float32, "label": int64}``; made once, the same for a seed."""

    def __init__(self, num_clouds: int, num_points: int = 256, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.labels = torch.arange(num_clouds) % len(SHAPE_NAMES)
        names = [SHAPE_NAMES[label] for label in self.labels.tolist()]
        self.points = torch.from_numpy(np.stack([sample_shape(name, num_points, rng) for name in names]))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"points": self.points[index], "label": self.labels[index]}
