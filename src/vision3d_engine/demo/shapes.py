"""Ten kinds of everyday shapes as point clouds: made by rule, with random proportions, seen from a random side."""

from collections.abc import Callable

import numpy as np
import torch
from numpy import ndarray
from numpy.random import Generator
from torch.utils.data import Dataset

from vision3d_engine.core.errors import ConfigError, did_you_mean
from vision3d_engine.demo.parts import Part, box, cone, ellipsoid, ring, sample_parts

Uniform = Callable[[float, float], float]


def _legs(x: float, y: float, height: float, width: float) -> list[Part]:
    """Return four square legs whose upper ends are at height 0."""
    corners = [(sx * x, sy * y, -height / 2) for sx in (-0.5, 0.5) for sy in (-0.5, 0.5)]
    return [box((width, width, height), corner) for corner in corners]


def _airplane(u: Uniform) -> list[Part]:
    length, radius, span, sweep = u(1.6, 2.2), u(0.1, 0.18), u(1.4, 2.2), u(0.25, 0.4)
    body = cone(radius, radius * u(0.3, 0.8), length, axis=0)
    wings = box((sweep, span, 0.04), (u(-0.1, 0.2), 0, 0))
    tail = box((sweep * 0.6, span * u(0.3, 0.4), 0.03), (-length * 0.45, 0, 0.05))
    fin = box((sweep * 0.6, 0.03, u(0.25, 0.4)), (-length * 0.45, 0, 0.2))
    return [body, wings, tail, fin]


def _chair(u: Uniform) -> list[Part]:
    width, depth, back = u(0.8, 1.1), u(0.8, 1.1), u(0.8, 1.2)
    seat = box((depth, width, 0.08))
    rest = box((0.08, width, back), (-depth / 2, 0, back / 2))
    return [seat, rest, *_legs(depth * 0.9, width * 0.9, u(0.7, 1.0), 0.08)]


def _table(u: Uniform) -> list[Part]:
    x, y, height = u(1.3, 2.0), u(0.9, 1.3), u(0.7, 1.1)
    return [box((x, y, 0.08)), *_legs(x * 0.9, y * 0.9, height, 0.1)]


def _lamp(u: Uniform) -> list[Part]:
    height, shade = u(1.2, 1.9), u(0.5, 0.7)
    foot = cone(u(0.3, 0.45), 0.25, 0.06)
    pole = cone(0.04, 0.04, height, (0, 0, height / 2))
    screen = cone(u(0.4, 0.6), u(0.15, 0.3), shade, (0, 0, height), closed=False)
    return [foot, pole, screen]


def _mug(u: Uniform) -> list[Part]:
    radius, height = u(0.4, 0.55), u(0.9, 1.2)
    wall = cone(radius, radius * u(0.95, 1.15), height, closed=False)
    bottom = cone(radius, radius, 0.02, (0, 0, -height / 2))
    handle = ring(height * u(0.28, 0.36), 0.06, (radius, 0, 0), arc=np.pi)
    return [wall, bottom, handle]


def _bottle(u: Uniform) -> list[Part]:
    radius, neck, body, shoulder, top = u(0.25, 0.4), u(0.08, 0.13), u(0.8, 1.2), u(0.25, 0.45), u(0.3, 0.6)
    return [
        cone(radius, radius, body),
        cone(radius, neck, shoulder, (0, 0, (body + shoulder) / 2), closed=False),
        cone(neck, neck, top, (0, 0, body / 2 + shoulder + top / 2)),
    ]


def _car(u: Uniform) -> list[Part]:
    length, width, height = u(1.7, 2.2), u(0.75, 0.95), u(0.3, 0.45)
    cabin = box((length * u(0.4, 0.6), width * 0.9, height), (u(-0.2, 0.1), 0, height * 0.95))
    radius = u(0.18, 0.24)
    places = [(sx * length * 0.32, sy * width * 0.5, -height / 2) for sx in (-1, 1) for sy in (-1, 1)]
    wheels = [cone(radius, radius, 0.12, place, axis=1) for place in places]
    return [box((length, width, height)), cabin, *wheels]


def _bed(u: Uniform) -> list[Part]:
    length, width, thick = u(1.8, 2.2), u(1.1, 1.6), u(0.2, 0.35)
    head = box((0.08, width, u(0.6, 0.9)), (-length / 2, 0, 0.15))
    foot = box((0.08, width, u(0.35, 0.5)), (length / 2, 0, 0.0))
    pillow = box((0.3, width * 0.7, 0.12), (-length * 0.36, 0, thick / 2 + 0.06))
    return [box((length, width, thick)), head, foot, pillow]


def _guitar(u: Uniform) -> list[Part]:
    lower, upper, thick, neck = u(0.4, 0.5), u(0.28, 0.36), u(0.08, 0.13), u(0.9, 1.2)
    belly = ellipsoid((lower, lower, thick))
    chest = ellipsoid((upper, upper, thick), (lower * 1.1, 0, 0))
    start = lower * 1.1 + upper
    stick = box((neck, 0.08, 0.05), (start + neck / 2 - 0.05, 0, 0.03))
    head = box((0.22, 0.16, 0.05), (start + neck, 0, 0.03))
    return [belly, chest, stick, head]


def _sofa(u: Uniform) -> list[Part]:
    width, depth, seat = u(1.6, 2.2), u(0.7, 0.9), u(0.3, 0.42)
    back = box((0.22, width, u(0.75, 0.95)), (-depth / 2, 0, 0.25))
    arms = [box((depth, 0.2, u(0.5, 0.65)), (0, side * width / 2, 0.1)) for side in (-1, 1)]
    return [box((depth, width, seat)), back, *arms]


_SHAPES: dict[str, Callable[[Uniform], list[Part]]] = {
    "airplane": _airplane,
    "chair": _chair,
    "table": _table,
    "lamp": _lamp,
    "mug": _mug,
    "bottle": _bottle,
    "car": _car,
    "bed": _bed,
    "guitar": _guitar,
    "sofa": _sofa,
}
SHAPE_NAMES = tuple(_SHAPES)


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
    parts = _SHAPES[name](lambda low, high: float(rng.uniform(low, high)))
    if not augment:
        return _normalized(sample_parts(parts, num_points, rng))
    missing = rng.uniform(0.0, 0.15)
    points = sample_parts(parts, int(np.ceil(num_points / (1 - missing))), rng)
    points = _cut_away(_turned(points, rng), num_points, rng)
    return _normalized(points + rng.normal(scale=0.015, size=points.shape))


def _turned(points: ndarray, rng: Generator) -> ndarray:
    """Turn points about the vertical axis by a random angle."""
    angle = rng.uniform(0, 2 * np.pi)
    c, s = np.cos(angle), np.sin(angle)
    return points @ np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])


def _cut_away(points: ndarray, keep: int, rng: Generator) -> ndarray:
    """Keep the points on one side of a plane of random direction, in random order."""
    depth = points @ rng.normal(size=3)
    return points[rng.permutation(np.argpartition(depth, keep - 1)[:keep])]


def _normalized(points: ndarray) -> ndarray:
    """Centre points and scale them into the unit sphere, as float32."""
    points = points - points.mean(axis=0)
    return (points / np.linalg.norm(points, axis=1).max()).astype(np.float32)


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
