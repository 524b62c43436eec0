"""Registration of point clouds: errors of rigid transforms, recalls, and the quality of correspondences.

Transforms are ``(4, 4)`` or ``(B, 4, 4)`` and move columns: y = R x + t. Lengths are in the unit of the points.
"""

import torch

from vision3d_engine.core.errors import ResultError
from vision3d_engine.metrics.whole_set import Array, WholeSetMetric, counts, described, exact, zeros


class RegistrationRecall(WholeSetMetric):
    """The share of pairs whose rotation and translation are right, and the errors of these.

    As on KITTI in Predator (Huang et al., CVPR 2021) and GeoTransformer (Qin et al., CVPR 2022): a pair is registered
    if RRE < ``max_rotation_deg`` and RTE < ``max_translation``, by default 5 degrees and 2 m.
    """

    def __init__(self, max_rotation_deg: float = 5.0, max_translation: float = 2.0) -> None:
        self.max_rotation_deg = max_rotation_deg
        self.max_translation = max_translation
        super().__init__(pairs=counts(), registered=counts(), errors=zeros(2), registered_errors=zeros(2))

    def update(self, estimated: Array, true: Array) -> None:
        """Take in transforms of one pair ``(4, 4)`` or of several ``(B, 4, 4)``; does not wait for the device."""
        estimated, true = as_transforms(estimated, true)
        errors = torch.stack([rotation_error_deg(estimated, true), translation_error(estimated, true)], -1).view(-1, 2)
        is_right = (errors[:, 0] < self.max_rotation_deg) & (errors[:, 1] < self.max_translation)
        registered_errors = torch.where(is_right[:, None], errors, 0)
        self._add(pairs=len(errors), errors=errors.sum(0))
        self._add(registered=is_right.sum(), registered_errors=registered_errors.sum(0))

    def compute(self) -> dict[str, float]:
        """Return the numbers over all pairs; waits for the device.

        ``RR`` is the share of registered pairs, ``RRE`` (degrees) and ``RTE`` are means over these, as in the papers,
        ``RRE/all`` and ``RTE/all`` over all pairs. An estimate that is not finite is not registered.
        """
        sums = self._read()
        recall = sums["registered"] / sums["pairs"]
        registered, every = sums["registered_errors"] / sums["registered"], sums["errors"] / sums["pairs"]
        names = "RR", "RRE", "RTE", "RRE/all", "RTE/all"
        return dict(zip(names, [recall.item(), *registered.tolist(), *every.tolist()], strict=True))


class RMSERecall(WholeSetMetric):
    """The share of pairs whose points come to lie where they belong.

    As on 3DMatch in the text of Choi et al. (CVPR 2015) and Predator: a pair is registered if the root mean square of
    |T x - T* x| over its points is below ``max_rmse``, by default 0.2 m. Their points are the sources of the true
    correspondences. The benchmark's script estimates this number from a covariance, which comes with its data;
    GeoTransformer takes the mean distance over all source points instead of the root of the mean square.
    """

    def __init__(self, max_rmse: float = 0.2) -> None:
        self.max_rmse = max_rmse
        super().__init__(pairs=counts(), registered=counts(), rmse=zeros())

    def update(self, points: Array, estimated: Array, true: Array) -> None:
        """Take in pairs: points ``(N, 3)`` and transforms, or batches ``(B, N, 3)``; does not wait for the device."""
        estimated, true = as_transforms(estimated, true)
        errors = rmse(as_points(points, estimated), estimated, true).flatten()
        is_right = errors < self.max_rmse
        self._add(pairs=len(errors), registered=is_right.sum(), rmse=torch.where(is_right, errors, 0).sum())

    def compute(self) -> dict[str, float]:
        """Return the share of registered pairs ``RR`` and the mean ``RMSE`` of these; waits for the device."""
        sums = self._read()
        found = {"RR": sums["registered"] / sums["pairs"], "RMSE": sums["rmse"] / sums["registered"]}
        return {name: value.item() for name, value in found.items()}


class FeatureMatchingRecall(WholeSetMetric):
    """How many correspondences are right, and how many pairs have enough of these.

    As on 3DMatch in PPFNet (Deng et al., CVPR 2018), Predator and GeoTransformer: a correspondence is an inlier if the
    true transform brings its source nearer than ``radius`` (0.1 m) to its target; a pair is matched if its inlier ratio
    is above ``min_inlier_ratio`` (0.05).
    """

    def __init__(self, radius: float = 0.1, min_inlier_ratio: float = 0.05) -> None:
        self.radius = radius
        self.min_inlier_ratio = min_inlier_ratio
        super().__init__(pairs=counts(), matched=counts(), ratio=zeros())

    def update(self, source: Array, target: Array, true: Array) -> None:
        """Take in the correspondences of a pair ``(N, 3)``, or of pairs ``(B, N, 3)``; does not wait for the device."""
        (true,) = as_transforms(true)
        ratios = inlier_ratio(as_points(source, true), as_points(target, true), true, self.radius).flatten()
        self._add(pairs=len(ratios), matched=(ratios > self.min_inlier_ratio).sum(), ratio=ratios.sum())

    def compute(self) -> dict[str, float]:
        """Return the mean inlier ratio ``IR`` and the share of matched pairs ``FMR``; waits for the device."""
        sums = self._read()
        return {"IR": (sums["ratio"] / sums["pairs"]).item(), "FMR": (sums["matched"] / sums["pairs"]).item()}


def rotation_error_deg(estimated: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """Return the angle of R^T R* in degrees, RRE, of transforms or rotations.

    It is arccos((trace - 1) / 2), computed from sine and cosine, since the cosine alone is blind to small angles.
    """
    difference = exact(estimated)[..., :3, :3].mT @ exact(true)[..., :3, :3]
    sine = (difference - difference.mT).flatten(-2).norm(dim=-1) / 8**0.5
    cosine = (difference.diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2
    return torch.rad2deg(torch.atan2(sine, cosine))


def translation_error(estimated: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """Return |t - t*|, RTE, of transforms."""
    return (exact(estimated) - exact(true))[..., :3, 3].norm(dim=-1)


def rmse(points: torch.Tensor, estimated: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """Return the root mean square of |T x - T* x| over points ``(..., N, 3)``."""
    return (moved(points, estimated) - moved(points, true)).square().sum(-1).mean(-1).sqrt()


def inlier_ratio(source: torch.Tensor, target: torch.Tensor, true: torch.Tensor, radius: float) -> torch.Tensor:
    """Return the share of correspondences ``(..., N, 3)`` with |T* x - y| < radius; 0 if there are none."""
    is_inlier = (moved(source, true) - exact(target)).norm(dim=-1) < radius
    return exact(is_inlier.sum(-1)) / max(source.shape[-2], 1)


def moved(points: torch.Tensor, transform: torch.Tensor) -> torch.Tensor:
    """Return points ``(..., N, 3)`` moved by transforms ``(..., 4, 4)``."""
    transform = exact(transform)
    return exact(points) @ transform[..., :3, :3].mT + transform[..., None, :3, 3]


def as_transforms(*transforms: Array) -> list[torch.Tensor]:
    """Return transforms as exact tensors; an error if they are none, or of different shapes."""
    tensors = [exact(each) for each in transforms]
    shape = tuple(tensors[0].shape)
    if shape[-2:] != (4, 4) or len(shape) > 3 or any(each.shape != shape for each in tensors):  # noqa: PLR2004
        found = " and ".join(described(each) for each in tensors)
        raise ResultError(f"a registration metric got transforms {found}; expected (4, 4) or (B, 4, 4), all alike")
    return tensors


def as_points(points: Array, transform: torch.Tensor) -> torch.Tensor:
    """Return points as an exact tensor; an error if they are none, or not as many clouds as transforms."""
    tensor = exact(points)
    if tensor.ndim != transform.ndim or tensor.shape[-1] != 3 or tensor.shape[:-2] != transform.shape[:-2]:  # noqa: PLR2004
        message = f"a registration metric got points {described(tensor)} and transforms {described(transform)}"
        raise ResultError(f"{message}; expected (N, 3) for (4, 4), or (B, N, 3) for (B, 4, 4)")
    return tensor
