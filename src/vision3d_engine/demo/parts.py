"""Surfaces that shapes are built of: each knows its area and samples points on itself."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy import ndarray
from numpy.random import Generator


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
        axis = rng.choice(3, n, p=faces / faces.sum())
        points[np.arange(n), axis] = rng.choice([-0.5, 0.5], n)
        return points * size + center

    return Part(float(faces.sum()), sample)


def cone(
    bottom: float, top: float, height: float, center: Sequence[float] = (0, 0, 0), axis: int = 2, closed: bool = True
) -> Part:
    """Return a truncated cone (a cylinder when both radii are equal, a disc when flat) along an axis.

    Args:
        bottom: radius at the lower end.
        top: radius at the upper end.
        height: distance of the ends.
        center: point halfway between the ends.
        axis: 0, 1 or 2 for x, y or z.
        closed: with the discs at both ends.
    """
    side = np.pi * (bottom + top) * np.hypot(height, bottom - top)
    discs = np.pi * np.array([bottom**2, top**2]) * closed
    areas = np.array([side, *discs])

    def sample(n: int, rng: Generator) -> ndarray:
        kind = rng.choice(3, n, p=areas / areas.sum())
        along = np.where(kind == 0, rng.uniform(0, 1, n), kind - 1.0)
        radius = bottom + (top - bottom) * along
        radius = np.where(kind == 0, radius, radius * np.sqrt(rng.uniform(0, 1, n)))
        angle = rng.uniform(0, 2 * np.pi, n)
        points = np.stack([radius * np.cos(angle), radius * np.sin(angle), (along - 0.5) * height], axis=1)
        return np.roll(points, axis - 2, axis=1) + center

    return Part(float(areas.sum()), sample)


def ellipsoid(radii: Sequence[float], center: Sequence[float] = (0, 0, 0)) -> Part:
    """Return the surface of an ellipsoid; points lie a little denser where it is more curved."""

    def sample(n: int, rng: Generator) -> ndarray:
        directions = rng.normal(size=(n, 3))
        return directions / np.linalg.norm(directions, axis=1, keepdims=True) * radii + center

    return Part(float(4 * np.pi * np.mean(np.square(radii))), sample)


def ring(radius: float, tube: float, center: Sequence[float] = (0, 0, 0), arc: float = 2 * np.pi) -> Part:
    """Return a torus, or an arc of one that begins at -arc/2, standing in the x-z plane."""

    def sample(n: int, rng: Generator) -> ndarray:
        around, across = rng.uniform(-arc / 2, arc / 2, n), rng.uniform(0, 2 * np.pi, n)
        distance = radius + tube * np.cos(across)
        return np.stack([distance * np.cos(around), tube * np.sin(across), distance * np.sin(around)], axis=1) + center

    return Part(float(arc * radius * 2 * np.pi * tube), sample)


def sample_parts(parts: Sequence[Part], num_points: int, rng: Generator) -> ndarray:
    """Return points ``(num_points, 3)`` on the parts, each getting its share by area."""
    areas = np.array([part.area for part in parts])
    counts = rng.multinomial(num_points, areas / areas.sum())
    return np.concatenate([part.sample(int(count), rng) for part, count in zip(parts, counts, strict=True)])
