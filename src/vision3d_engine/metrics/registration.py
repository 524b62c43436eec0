"""Registration of point clouds: errors of rigid transforms, recalls, and the quality of correspondences.

Transforms are ``(4, 4)`` or ``(B, 4, 4)`` and move columns: y = R x + t. Lengths are in the unit of the points.
Transforms that are not rigid are counted, and ``compute`` raises an error that says how many there were.
"""

import torch

from vision3d_engine.core.errors import ResultError
from vision3d_engine.metrics.arguments import require_thresholds
from vision3d_engine.metrics.whole_set import Array, WholeSetMetric, counts, described, exact, zeros

# By how much R^T R may differ from I, and the last row from 0 0 0 1; the former is rounded in bfloat16.
_MAX_SKEW, _MAX_LAST_ROW = 0.05, 1e-3


class PairMetric(WholeSetMetric):
    """A metric of pairs of clouds, which knows how many of their transforms were not rigid."""

    def __init__(self, **sums: torch.Tensor) -> None:
        super().__init__(pairs=counts(), not_rigid=counts(2), **sums)

    def _count(self, true: torch.Tensor, estimated: torch.Tensor | None = None) -> None:
        """Count pairs, and their transforms that are not rigid; estimates that are not finite are just no solution."""
        wrong = ~is_rigid(true)
        wrong_estimates = torch.zeros_like(wrong)
        if estimated is not None:
            wrong_estimates = ~is_rigid(estimated) & estimated.isfinite().all(-1).all(-1)
        self._add(pairs=wrong.numel(), not_rigid=torch.stack([wrong.sum(), wrong_estimates.sum()]))

    def _checked(self) -> dict[str, torch.Tensor]:
        """Return the sums on the host.

        Raises:
            ResultError: Transforms were not rigid; it tells how many.
        """
        sums = self._read()
        true, estimated = sums["not_rigid"].long().tolist()
        if true or estimated:
            message = (
                f"{type(self).__name__} got {true} true and {estimated} estimated transforms, of {sums['pairs']:.0f} "
                "pairs, that are not rigid; expected a rotation R and a translation t in the rows (R t) and (0 0 0 1), "
                "which move columns, y = R x + t; transpose those that move rows, take scales and skews out of R, and "
                "hand in NaN for an estimate that there is not"
            )
            raise ResultError(message)
        return sums


class RegistrationRecall(PairMetric):
    """The share of pairs whose rotation and translation are right, and the errors of these.

    As on KITTI in Predator (Huang et al., CVPR 2021) and GeoTransformer (Qin et al., CVPR 2022): a pair is registered
    if RRE < ``max_rotation_deg`` and RTE < ``max_translation``, by default 5 degrees and 2 m.
    """

    def __init__(self, max_rotation_deg: float = 5.0, max_translation: float = 2.0) -> None:
        require_thresholds(self, max_rotation_deg=max_rotation_deg, max_translation=max_translation)
        self.max_rotation_deg = max_rotation_deg
        self.max_translation = max_translation
        super().__init__(registered=counts(), errors=zeros(2), registered_errors=zeros(2))

    def update(self, estimated: Array, true: Array) -> None:
        """Take in transforms of one pair ``(4, 4)`` or of several ``(B, 4, 4)``; does not wait for the device."""
        estimated, true = as_transforms(estimated, true)
        errors = torch.stack([rotation_error_deg(estimated, true), translation_error(estimated, true)], -1).view(-1, 2)
        is_right = (errors[:, 0] < self.max_rotation_deg) & (errors[:, 1] < self.max_translation)
        registered_errors = torch.where(is_right[:, None], errors, 0)
        self._count(true, estimated)
        self._add(errors=errors.sum(0), registered=is_right.sum(), registered_errors=registered_errors.sum(0))

    def compute(self) -> dict[str, float]:
        """Return the numbers over all pairs; waits for the device.

        ``RR`` is the share of registered pairs, ``RRE`` (degrees) and ``RTE`` are means over these, as in the papers,
        ``RRE/all`` and ``RTE/all`` over all pairs. An estimate that is not finite is not registered.
        """
        sums = self._checked()
        recall = sums["registered"] / sums["pairs"]
        registered, every = sums["registered_errors"] / sums["registered"], sums["errors"] / sums["pairs"]
        names = "RR", "RRE", "RTE", "RRE/all", "RTE/all"
        return dict(zip(names, [recall.item(), *registered.tolist(), *every.tolist()], strict=True))


class RMSERecall(PairMetric):
    """The share of pairs whose points come to lie where they belong.

    As on 3DMatch in the text of Choi et al. (CVPR 2015) and Predator: a pair is registered if the root mean square of
    |T x - T* x| over its points is below ``max_rmse``, by default 0.2 m. Their points are the sources of the true
    correspondences. The benchmark's script estimates this number from a covariance, which comes with its data;
    GeoTransformer takes the mean distance over all source points instead of the root of the mean square.
    """

    def __init__(self, max_rmse: float = 0.2) -> None:
        require_thresholds(self, max_rmse=max_rmse)
        self.max_rmse = max_rmse
        super().__init__(registered=counts(), rmse=zeros())

    def update(self, points: Array, estimated: Array, true: Array) -> None:
        """Take in pairs: points ``(N, 3)`` and transforms, or batches ``(B, N, 3)``; does not wait for the device."""
        estimated, true = as_transforms(estimated, true)
        (points,) = as_points(true, points)
        errors = rmse(points, estimated, true).flatten()
        is_right = errors < self.max_rmse
        self._count(true, estimated)
        self._add(registered=is_right.sum(), rmse=torch.where(is_right, errors, 0).sum())

    def compute(self) -> dict[str, float]:
        """Return the share of registered pairs ``RR`` and the mean ``RMSE`` of these; waits for the device."""
        sums = self._checked()
        found = {"RR": sums["registered"] / sums["pairs"], "RMSE": sums["rmse"] / sums["registered"]}
        return {name: value.item() for name, value in found.items()}


class FeatureMatchingRecall(PairMetric):
    """How many correspondences are right, and how many pairs have enough of these.

    As on 3DMatch in PPFNet (Deng et al., CVPR 2018), Predator and GeoTransformer: a correspondence is an inlier if the
    true transform brings its source nearer than ``radius`` (0.1 m) to its target; a pair is matched if its inlier ratio
    is above ``min_inlier_ratio`` (0.05).
    """

    def __init__(self, radius: float = 0.1, min_inlier_ratio: float = 0.05) -> None:
        require_thresholds(self, radius=radius, min_inlier_ratio=min_inlier_ratio)
        self.radius = radius
        self.min_inlier_ratio = min_inlier_ratio
        super().__init__(matched=counts(), ratio=zeros())

    def update(self, source: Array, target: Array, true: Array) -> None:
        """Take in the correspondences of a pair ``(N, 3)``, or of pairs ``(B, N, 3)``; does not wait for the device."""
        (true,) = as_transforms(true)
        source, target = as_points(true, source, target)
        ratios = inlier_ratio(source, target, true, self.radius).flatten()
        self._count(true)
        self._add(matched=(ratios > self.min_inlier_ratio).sum(), ratio=ratios.sum())

    def compute(self) -> dict[str, float]:
        """Return the mean inlier ratio ``IR`` and the share of matched pairs ``FMR``; waits for the device."""
        sums = self._checked()
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


def as_points(transform: torch.Tensor, *clouds: Array) -> list[torch.Tensor]:
    """Return points as exact tensors; an error if they are none, not alike, or not as many clouds as transforms."""
    tensors = [exact(each) for each in clouds]
    shape = tuple(tensors[0].shape)
    is_cloud = len(shape) == transform.ndim and shape[-1] == 3 and shape[:-2] == transform.shape[:-2]  # noqa: PLR2004
    if not is_cloud or any(each.shape != shape for each in tensors):
        found = " and ".join(described(each) for each in tensors)
        message = f"a registration metric got points {found} and transforms {described(transform)}"
        raise ResultError(f"{message}; expected (N, 3) for (4, 4), or (B, N, 3) for (B, 4, 4), all points alike")
    return tensors


def is_rigid(transform: torch.Tensor) -> torch.Tensor:
    """Return which transforms ``(..., 4, 4)`` are a rotation and a translation, up to the rounding of bfloat16."""
    transform = exact(transform)
    rotation, last_row = transform[..., :3, :3], transform[..., 3, :]
    skew = (rotation.mT @ rotation - torch.eye(3, device=rotation.device)).abs().amax((-2, -1))
    first, second, third = rotation.unbind(-2)
    is_right_handed = (first.cross(second, dim=-1) * third).sum(-1) > 0
    beside = (last_row - torch.eye(4, device=rotation.device)[3]).abs().amax(-1)
    return (skew <= _MAX_SKEW) & is_right_handed & (beside <= _MAX_LAST_ROW) & transform.isfinite().all(-1).all(-1)
