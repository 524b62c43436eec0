"""Cut a scene into fragments that together have every point of it: without randomness, on the device of the points."""

from collections.abc import Iterator, Mapping
from math import ceil
from typing import Any

import torch
from torch import Tensor

from vision3d_engine.core.errors import DataError, listed
from vision3d_engine.core.tree import describe
from vision3d_engine.data.collate import CLOUD_KEYS
from vision3d_engine.data.packing import is_array

_LEAST_WEIGHT = 1e-3  # of a point at the surface of a sphere, which no other one may reach


def find_cloud(scene: Mapping[str, Any]) -> Any:
    """Return the cloud of a scene: rows ``(N, C)`` under a name that `collate_packed` knows; None without one."""
    for key in CLOUD_KEYS:
        cloud: Any = scene.get(key)
        if is_array(cloud) and cloud.ndim == 2:  # noqa: PLR2004  rows of coordinates
            return cloud
    return None


def count_points(scene: Mapping[str, Any]) -> int:
    """Return how many points a scene has.

    Raises:
        DataError: when it has no cloud.
    """
    if (cloud := find_cloud(scene)) is None:
        got = listed(f"{key!r}: {describe(value)}" for key, value in scene.items())
        raise DataError(f"a scene has no cloud: expected (N, C) under one of the names {listed(CLOUD_KEYS)}, got {got}")
    return len(cloud)


def take_points(scene: Mapping[str, Any], index: Tensor) -> dict[str, Any]:
    """Return a fragment: ``index (n,)``, and of each entry of the scene that has one row a point these rows.

    All other entries are left out; add those that the network needs.

    Raises:
        DataError: when the scene has no cloud.
    """
    num_points = count_points(scene)
    per_point = {key: each for key, each in scene.items() if is_array(each) and each.ndim and len(each) == num_points}
    return {key: torch.as_tensor(each)[index] for key, each in per_point.items()} | {"index": index}


def overlapping_blocks(
    points: Tensor, size: float, stride: float | None = None, max_points: int | None = None
) -> Iterator[Tensor]:
    """Yield the points, as an index ``(n,)``, of each block of a scene: columns over squares of x and y, as on S3DIS.

    Args:
        points: ``(N, 2)`` or more columns.
        size: side of a block, in the unit of the points.
        stride: from one block to the next, at most the size; by default half of it, so that four blocks overlap.
        max_points: a block with more becomes several fragments, each with every k-th of its points.

    Raises:
        DataError: when points are not finite, or blocks would leave gaps.
    """
    points, stride = _checked(points, size=size), size / 2 if stride is None else stride
    _check_positive(stride=stride, max_points=max_points)
    if stride > size:
        message = f"blocks of size {size} every {stride} leave points out between them"
        raise DataError(f"{message}: give overlapping_blocks a stride of at most the size")
    return _blocks(points, size, stride, max_points)


def _blocks(points: Tensor, size: float, stride: float, max_points: int | None) -> Iterator[Tensor]:
    for slab in _windows(points[:, 0], size, stride):
        for block in _windows(points[slab, 1], size, stride):
            yield from _shares(slab[block], max_points)


def _windows(values: Tensor, size: float, stride: float) -> Iterator[Tensor]:
    """Yield, in rising order, the positions of the values in each window on a line that holds any."""
    ordered, order = values.double().sort(stable=True)
    ordered = ordered - ordered[0]
    count = max(ceil((float(ordered[-1]) - size) / stride), 0) + 1
    starts = torch.arange(count, device=values.device, dtype=values.dtype) * stride
    begins = torch.searchsorted(ordered, starts)
    ends = torch.searchsorted(ordered, starts + size)
    ends = torch.maximum(ends, begins.roll(-1))  # where start + size is rounded to less than the next start
    ends[-1] = len(values)
    for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
        if begin < end:
            yield order[begin:end].sort().values


def _shares(index: Tensor, max_points: int | None) -> Iterator[Tensor]:
    """Yield an index in shares of at most so many points, each spread over all of it."""
    count = 1 if max_points is None else ceil(len(index) / max_points)
    return (index[number::count] for number in range(count))


def spheres(
    points: Tensor, radius: float, max_points: int | None = None, coverage: float = 0.5
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield index and weight ``(n,)`` of the points of each sphere, in the manner of KPConv and Point Transformer.

    Its centre is the point that the spheres before it cover least, the first of several. A weight is 1 - (d / R)^2 at a
    distance d from the centre, where R is the radius, or the distance of the last point that ``max_points`` admits.

    Args:
        points: ``(N, C)``; distances are Euclidean in all columns.
        radius: of a sphere, in the unit of the points.
        max_points: of a sphere with more only the nearest ones are taken.
        coverage: spheres follow until the weights of each point add up to so much.

    Raises:
        DataError: when points are not finite.
    """
    points = _checked(points, radius=radius, coverage=coverage)
    _check_positive(max_points=max_points)
    return _spheres(points, radius, max_points, coverage)


def _spheres(points: Tensor, radius: float, max_points: int | None, coverage: float) -> Iterator[tuple[Tensor, Tensor]]:
    covered = points.new_zeros(len(points))
    while (least := covered.min()) < coverage:
        center = (covered == least).nonzero()[0]
        index, weight = _sphere(points, center, radius, max_points)
        covered[index] += weight
        yield index, weight


def _sphere(points: Tensor, center: Tensor, radius: float, max_points: int | None) -> tuple[Tensor, Tensor]:
    """Return index and weight of the points around one; it is among them, however many lie at the same place."""
    distances = (points - points[center]).norm(dim=1).index_fill(0, center, -1)
    index = (distances < radius).nonzero()[:, 0]
    reach = torch.as_tensor(radius).to(distances)
    if max_points is not None and len(index) > max_points:
        nearest = distances[index].argsort(stable=True)[:max_points]
        index = index[nearest.sort().values]
        reach = distances[index].max().clamp_min(torch.finfo(distances.dtype).tiny)
    return index, (1 - (distances[index].clamp_min(0) / reach).square()).clamp_min(_LEAST_WEIGHT)


def voxel_picks(points: Tensor, voxel_size: float) -> Iterator[Tensor]:
    """Yield indices ``(voxels,)`` with one point of every voxel, until each point was picked, as in Pointcept's tests.

    The k-th one has the k-th point of each voxel, where a voxel with fewer begins anew. There are as many as the
    fullest voxel has points, each as large as the scene has voxels.

    Args:
        points: ``(N, C)``.
        voxel_size: side of a voxel, in the unit of the points.

    Raises:
        DataError: when points are not finite.
    """
    voxels, counts = _voxels(_checked(points, voxel_size=voxel_size), voxel_size)
    order, starts = voxels.argsort(stable=True), counts.cumsum(0) - counts
    return (order[starts + turn % counts] for turn in range(int(counts.max())))


def voxel_subsample(points: Tensor, voxel_size: float) -> tuple[Tensor, Tensor]:
    """Return which points stand for all others ``(M,)``, and the position among them of each point's own ``(N,)``.

    The first point of each voxel stands for all of it. So ``points[index][inverse]`` has a point within the diagonal of
    a voxel for each of ``points``, and ``inverse`` brings what is predicted for ``points[index]`` back to all.

    Args:
        points: ``(N, C)``.
        voxel_size: side of a voxel, in the unit of the points.

    Raises:
        DataError: when points are not finite.
    """
    voxels, counts = _voxels(_checked(points, voxel_size=voxel_size), voxel_size)
    return voxels.argsort(stable=True)[counts.cumsum(0) - counts], voxels


def _voxels(points: Tensor, voxel_size: float) -> tuple[Tensor, Tensor]:
    """Return the voxel of each point ``(N,)``, numbered from 0, and how many points each voxel has."""
    cells = (points.double() / voxel_size).floor()
    voxels, counts = torch.unique(cells[:, 0], return_inverse=True, return_counts=True)[1:]
    for axis in cells.T[1:]:  # numbered anew for each axis, so that the number of voxels of a box does not overflow
        ranks = torch.unique(axis, return_inverse=True)[1]
        voxels = voxels * (ranks.max() + 1) + ranks
        voxels, counts = torch.unique(voxels, return_inverse=True, return_counts=True)[1:]
    return voxels, counts


def _checked(points: Tensor, **lengths: float) -> Tensor:
    """Return finite points ``(N, C)``, as float32 or, where that would round them, as float64.

    Raises:
        DataError: for other points, and for lengths that are not positive.
    """
    _check_positive(**lengths)
    if not isinstance(points, Tensor) or points.ndim != 2 or points.shape[1] < 2 or not len(points):  # noqa: PLR2004
        raise DataError(f"a scene is cut by its points: expected a tensor (N, 3), N above 0, got {describe(points)}")
    least = torch.float32 if points.is_floating_point() else torch.float64
    points = points.to(torch.promote_types(points.dtype, least))
    if (count := int((~points.isfinite()).any(dim=1).sum())) > 0:
        message = f"{count} of {len(points)} points of a scene hold NaN or infinity, which lie in no fragment"
        raise DataError(f"{message}: leave them out when the scene is loaded")
    return points


def _check_positive(**lengths: float | None) -> None:
    for name, length in lengths.items():
        if length is not None and not length > 0:
            raise DataError(f"{name} is {length}; to cut a scene it must be above 0")
