"""Completion, generation and reconstruction: distances between sets of points."""

import torch

from vision3d_engine.core.errors import ResultError
from vision3d_engine.metrics.arguments import as_tensor, require_thresholds
from vision3d_engine.metrics.whole_set import Array, WholeSetMetric, counts, described, exact, zeros

# How many distances are held at once; 64 MiB of float32.
_MAX_PAIRS = 2**24


class PointSetDistances(WholeSetMetric):
    """Chamfer distances and F-score between predicted and true points, each a mean over shapes.

    With d(x, S) the distance from a point x to the nearest point of S, P the predicted and T the true points:

    - ``CD-L1`` is (mean d(p, T) + mean d(t, P)) / 2, as in the code of PCN (Yuan et al., 3DV 2018) and PoinTr (Yu et
      al., ICCV 2021); papers that do not halve have twice the number.
    - ``CD-L2`` is mean d(p, T)² + mean d(t, P)², as there; Fan et al. (CVPR 2017) sum over points.
    - ``precision`` and ``recall`` are the shares of P and of T with a distance below ``threshold``, ``F-score`` is 2
      precision recall / (precision + recall), 0 if both are (Knapitsch et al., SIGGRAPH 2017; Tatarchenko et al., CVPR
      2019, who take 1 % of the side of the volume).
    """

    def __init__(self, threshold: float = 0.01) -> None:
        require_thresholds(self, threshold=threshold)
        self.threshold = threshold
        super().__init__(shapes=counts(), distances=zeros(2), scores=zeros(3))

    def update(self, prediction: Array, target: Array) -> None:
        """Take in one shape ``(N, 3)`` and ``(M, 3)``, or several ``(B, N, 3)`` and ``(B, M, 3)``.

        Does not wait for the device. Takes time of order B N M, and memory for 2^24 distances, or for one point of each
        set, if these have more.
        """
        prediction, target = _as_sets(prediction, target)
        to_target, to_prediction = nearest_distances(prediction, target), nearest_distances(target, prediction)
        chamfer = to_target.mean(-1) + to_prediction.mean(-1)
        squared = to_target.square().mean(-1) + to_prediction.square().mean(-1)
        precision, recall = (exact(each < self.threshold).mean(-1) for each in (to_target, to_prediction))
        both = precision + recall
        f_score = 2 * precision * recall / torch.where(both == 0, 1, both)
        self._add(shapes=len(f_score), distances=torch.stack([chamfer / 2, squared]).sum(1))
        self._add(scores=torch.stack([f_score, precision, recall]).sum(1))

    def compute(self) -> dict[str, float]:
        """Return the means over all shapes; waits for the device."""
        sums = self._read()
        found = torch.cat([sums["distances"], sums["scores"]]) / sums["shapes"]
        return dict(zip(("CD-L1", "CD-L2", "F-score", "precision", "recall"), found.tolist(), strict=True))


def nearest_distances(points: torch.Tensor, others: torch.Tensor, max_pairs: int = _MAX_PAIRS) -> torch.Tensor:
    """Return the distance ``(B, N)`` of each point to the nearest other one, in the exact type.

    Args:
        points: ``(B, N, 3)``.
        others: ``(B, M, 3)``.
        max_pairs: How many distances may be held at once; those of one point in each set are, however many.
    """
    rows = max(max_pairs // (len(others) * others.shape[1]), 1)
    direct = "donot_use_mm_for_euclid_dist"  # products of matrices lose the small distances
    nearest = [torch.cdist(some, others, compute_mode=direct).amin(-1) for some in points.split(rows, dim=1)]
    return exact(torch.cat(nearest, dim=1))


def _as_sets(*point_sets: Array) -> list[torch.Tensor]:
    """Return sets of points as float32 or float64 ``(B, N, 3)``; an error if they are none, empty, or do not fit."""
    tensors = [as_tensor(each) for each in point_sets]
    shapes = [tuple(each.shape) for each in tensors]
    is_cloud = all(shape[-1:] == (3,) and len(shape) in {2, 3} and 0 not in shape for shape in shapes)
    if not is_cloud or shapes[0][:-2] != shapes[1][:-2]:
        message = f"PointSetDistances.update got points {' and '.join(described(each) for each in tensors)}"
        raise ResultError(f"{message}; expected (N, 3) and (M, 3), or (B, N, 3) and (B, M, 3), none of them empty")
    dtype = torch.promote_types(torch.float32, torch.promote_types(tensors[0].dtype, tensors[1].dtype))
    return [each.to(dtype).view(-1, *each.shape[-2:]) for each in tensors]
