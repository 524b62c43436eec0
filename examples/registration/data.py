"""Pairs of point clouds that show the same surface, sampled twice, partly overlapping, one of them moved.

Surfaces: the demo's procedural shapes, patches of a real terrain (matplotlib's sample grid), and, for testing only,
patches of three parts of a real room: the Motorcycle scene of D. Scharstein et al., "High-resolution stereo datasets
with subpixel-accurate ground truth", GCPR 2014.
"""

from collections.abc import Callable
from itertools import cycle, islice
from typing import Any

import numpy as np
import torch
from numpy import ndarray
from numpy.random import Generator
from torch.utils.data import Dataset

from vision3d_engine.demo.shapes import SHAPE_NAMES, sample_shape

# Calibration of the Motorcycle scene at the size that scikit-image ships (Middlebury 2014).
FOCAL_PX, CENTER_X_PX, CENTER_Y_PX = 994.978, 311.193, 254.877
BASELINE_MM, DISPARITY_OFFSET_PX = 193.001, 31.086

Patch = Callable[[int, Generator], ndarray]


def points_from_disparity(disparity: ndarray) -> ndarray:
    """Return the points ``(N, 3)`` in metres, x right, y down, z forward, of a disparity map ``(H, W)`` in pixels.

    Pixels without a finite disparity are left out.
    """
    rows, columns = np.nonzero(np.isfinite(disparity))
    depth = BASELINE_MM / 1000 * FOCAL_PX / (disparity[rows, columns] + DISPARITY_OFFSET_PX)
    x = (columns - CENTER_X_PX) / FOCAL_PX * depth
    y = (rows - CENTER_Y_PX) / FOCAL_PX * depth
    return np.stack([x, y, depth], axis=1)


def load_scan() -> ndarray:
    """Return the room as points ``(N, 3)`` in metres."""
    from skimage.data import stereo_motorcycle

    return points_from_disparity(stereo_motorcycle()[2])


def load_terrain() -> ndarray:
    """Return the terrain as a grid of points ``(H, W, 3)`` in metres."""
    from matplotlib.cbook import get_sample_data

    grid: Any = get_sample_data("jacksboro_fault_dem.npz")
    height = grid["elevation"].astype(float)
    meters_per_degree = 111_200
    dy = meters_per_degree * float(grid["dy"])
    dx = meters_per_degree * float(grid["dx"]) * np.cos(np.radians(float(grid["ymin"])))
    grid.close()
    y, x = np.mgrid[: height.shape[0], : height.shape[1]]
    return np.stack([x * dx, y * dy, height], axis=-1)


def shape_patch(num_points: int, rng: Generator) -> ndarray:
    """Return points ``(num_points, 3)`` of one random shape."""
    return sample_shape(str(rng.choice(SHAPE_NAMES)), num_points, rng, augment=False)


def terrain_patch(terrain: ndarray) -> Patch:
    """Return a sampler of square pieces of the terrain, heights exaggerated a little at random."""

    def sample(num_points: int, rng: Generator) -> ndarray:
        side = int(rng.integers(30, 80))
        row, column = (int(rng.integers(0, size - side)) for size in terrain.shape[:2])
        piece = terrain[row : row + side, column : column + side].reshape(-1, 3)
        points = piece[rng.choice(len(piece), num_points, replace=False)]
        return points * (1, 1, rng.uniform(2.0, 8.0))

    return sample


def parts_of(scan: ndarray) -> dict[str, ndarray]:
    """Return the left, middle and right third of the points of a scan."""
    thirds = np.array_split(scan[np.argsort(scan[:, 0], kind="stable")], 3)
    return dict(zip(("left", "middle", "right"), thirds, strict=True))


def scan_patch(scan: ndarray) -> Patch:
    """Return a sampler of pieces of a scan: all points within 30 to 60 cm of a random one."""

    def sample(num_points: int, rng: Generator) -> ndarray:
        while True:
            center = scan[rng.integers(len(scan))]
            piece = scan[np.linalg.norm(scan - center, axis=1) < rng.uniform(0.3, 0.6)]
            if len(piece) >= 2 * num_points:
                return piece[rng.choice(len(piece), num_points, replace=False)]

    return sample


def random_rotation(max_angle_deg: float, rng: Generator) -> ndarray:
    """Return a rotation matrix ``(3, 3)`` by an angle up to the maximum about a random axis (Rodrigues' formula)."""
    x, y, z = (axis := rng.normal(size=3)) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.radians(rng.uniform(0, max_angle_deg))
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def make_pair(points: ndarray, rng: Generator, max_angle_deg: float) -> dict[str, torch.Tensor]:
    """Make a pair of a patch ``(2 M, 3)``: every second point each, cut by different planes, the source moved.

    Returns:
        ``source`` and ``target`` ``(N, 3)`` with N = 0.8 M; ``rotation`` ``(3, 3)`` and ``translation`` ``(3,)`` that
        bring the source onto the target; ``scale``, the metres of one unit. Clouds fit into the unit sphere.
    """
    center = points.mean(axis=0)
    scale = np.linalg.norm(points - center, axis=1).max()
    points = (points - center) / scale
    source, target = (_cut(part, rng) for part in (points[::2], points[1::2]))
    source, target = (part + rng.normal(scale=0.005, size=part.shape) for part in (source, target))
    rotation, translation = random_rotation(max_angle_deg, rng), rng.uniform(-0.3, 0.3, 3)
    moved = (source - translation) @ rotation  # the inverse motion, for rows
    values = {"source": moved, "target": target, "rotation": rotation, "translation": translation, "scale": scale}
    return {key: torch.as_tensor(np.asarray(value), dtype=torch.float32) for key, value in values.items()}


def _cut(points: ndarray, rng: Generator) -> ndarray:
    """Keep the 80 % of the points on one side of a plane of random direction."""
    depth = points @ rng.normal(size=3)
    return points[np.argsort(depth)[: int(0.8 * len(points))]]


class PairDataset(Dataset):
    """Pairs of random patches. Each index always gives the same patch; its motion is drawn anew when training.

    Args:
        patches: samplers by name, used in turn; a pair is called ``NAME-INDEX``.
        num_pairs: length of the data set.
        num_points: points of a patch before it is shared out and cut; clouds have 0.4 times as many.
        max_angle_deg: largest angle of the motion.
        seed: seed of the patches.
        fixed: draw the same motion for an index every time, as for testing.
    """

    def __init__(
        self,
        patches: dict[str, Patch],
        num_pairs: int,
        num_points: int,
        max_angle_deg: float,
        seed: int,
        fixed: bool = False,
    ) -> None:
        rng = np.random.default_rng(seed)
        scenes = list(islice(cycle(patches), num_pairs))
        self._names = [f"{scene}-{index:03d}" for index, scene in enumerate(scenes)]
        self._patches = [patches[scene](num_points, rng) for scene in scenes]
        self._max_angle_deg = max_angle_deg
        self._seed = seed
        self._fixed = fixed

    def __len__(self) -> int:
        return len(self._patches)

    def __getitem__(self, index: int) -> dict[str, Any]:
        seed = (self._seed, index) if self._fixed else int(torch.randint(2**31, ()))
        pair = make_pair(self._patches[index], np.random.default_rng(seed), self._max_angle_deg)
        return {"name": self._names[index], **pair}


def familiar_patches() -> dict[str, Patch]:
    """Return the samplers of surfaces like those of the training."""
    return {"shape": shape_patch, "terrain": terrain_patch(load_terrain())}


def training_set(num_pairs: int, num_points: int, max_angle_deg: float, seed: int) -> PairDataset:
    """Return pairs of shapes and terrain."""
    return PairDataset(familiar_patches(), num_pairs, num_points, max_angle_deg, seed)


def validation_set(num_pairs: int, num_points: int, max_angle_deg: float, seed: int) -> PairDataset:
    """Return other pairs of shapes and terrain, with fixed motions."""
    return PairDataset(familiar_patches(), num_pairs, num_points, max_angle_deg, seed, fixed=True)


def scan_set(num_pairs: int, num_points: int, max_angle_deg: float, seed: int) -> PairDataset:
    """Return pairs of the real room, with fixed motions."""
    patches = {name: scan_patch(part) for name, part in parts_of(load_scan()).items()}
    return PairDataset(patches, num_pairs, num_points, max_angle_deg, seed, fixed=True)


TEST_SETS = {"scan": scan_set, "familiar": validation_set}
