"""Registration by learned soft matches: Wang & Solomon, "Deep Closest Point", ICCV 2019, run several times over."""

import torch
from torch import Tensor, nn

from vision3d_engine.demo.network import nearest_neighbours


def max_over_neighbours(features: Tensor, indices: Tensor) -> Tensor:
    """Return the maximum ``(B, N, C)`` of features ``(B, N, C)`` over the neighbours ``(B, N, k)`` of each point.

    Only the strongest neighbours take part in the backward pass, which is what makes it quick.
    """
    with torch.no_grad():
        flat = features.flatten(0, 1)
        rows = indices + torch.arange(len(indices), device=indices.device)[:, None, None] * indices.shape[1]
        best = torch.full_like(flat, -torch.inf)
        winner = torch.zeros_like(flat, dtype=torch.uint8)
        for k, row in enumerate(rows.flatten(0, 1).t().contiguous()):
            candidate = flat.index_select(0, row)
            winner = torch.maximum(winner, (candidate > best) * torch.tensor(k, dtype=torch.uint8, device=flat.device))
            best = torch.maximum(best, candidate)
        strongest = indices.gather(2, winner.view_as(features).long())
    return features.gather(1, strongest)


class EdgeConv(nn.Module):
    """``max_j linear([x_i, x_j - x_i])`` over the neighbours j of each point i, then norm and activation.

    The linear map is split into one of ``x_i`` and one of ``x_j``, which gives the same numbers without edges in
    memory; norm and activation follow the maximum, which changes nothing for increasing ones.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.own = nn.Linear(in_features, out_features, bias=False)
        self.neighbour = nn.Linear(in_features, out_features, bias=False)
        self.norm = nn.BatchNorm1d(out_features)

    def forward(self, features: Tensor, indices: Tensor) -> Tensor:
        """Return ``(B, N, out_features)`` from ``(B, N, in_features)`` and neighbour indices ``(B, N, k)``."""
        strongest = max_over_neighbours(self.neighbour(features), indices)
        return _normalized(strongest + self.own(features), self.norm)


def _normalized(features: Tensor, norm: nn.BatchNorm1d) -> Tensor:
    """Normalise ``(B, N, C)`` over all points and apply the activation."""
    return nn.functional.leaky_relu(norm(features.flatten(0, 1)).view_as(features), 0.2)


class CrossAttention(nn.Module):
    """Lets the points of one cloud look at those of the other: ``(B, N, C)``, ``(B, M, C)`` to ``(B, N, C)``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.mix = nn.Sequential(nn.Linear(2 * width, width), nn.LeakyReLU(0.2), nn.Linear(width, width))

    def forward(self, features: Tensor, others: Tensor) -> Tensor:
        """Return the features with what was seen added to them."""
        seen = nn.functional.scaled_dot_product_attention(self.query(features), self.key(others), self.value(others))
        return features + self.mix(torch.cat([features, seen], dim=-1))


class RegistrationModel(nn.Module):
    """Estimates the motion that brings a source cloud onto a target cloud.

    In every round each source point is matched to a mean of target points, weighted by how alike their features are
    and, with a sharpness learned for each round, by how near they are once the estimate so far is applied. Matches that
    leave a wide gap, as where the clouds do not overlap, count less.
    """

    def __init__(self, width: int = 48, k: int = 12, rounds: int = 3) -> None:
        super().__init__()
        self.k = k
        self.edges = nn.ModuleList([EdgeConv(3, 32), EdgeConv(32, width), EdgeConv(width, width)])
        self.attention = CrossAttention(width)
        self.project = nn.Linear(width, width)
        self.confidence = nn.Linear(width, 1)
        self.likeness = nn.Parameter(torch.zeros(rounds))
        self.nearness = nn.Parameter(torch.linspace(0.0, 5.5, rounds))
        self.doubt = nn.Parameter(torch.linspace(0.0, 4.0, rounds))

    def forward(self, source: Tensor, target: Tensor, rounds: int) -> list[tuple[Tensor, Tensor]]:
        """Return the estimate after each round, ``rotation (B, 3, 3)`` and ``translation (B, 3)``.

        Args:
            source: ``(B, N, 3)``.
            target: ``(B, M, 3)``.
            rounds: how often the estimate is refined; each round starts from the source moved by the one before.
        """
        source_graph, target_graph = nearest_neighbours(source, self.k), nearest_neighbours(target, self.k)
        target_features = self._features(target, target_graph)
        rotation = torch.eye(3, device=source.device).expand(len(source), 3, 3)
        translation = torch.zeros(len(source), 3, device=source.device)
        estimates = []
        for number in range(rounds):
            moved = apply_motion(source, rotation, translation).detach()
            step = self._match(moved, self._features(moved, source_graph), target, target_features, number)
            rotation, translation = compose(step, (rotation.detach(), translation.detach()))
            estimates.append((rotation, translation))
        return estimates

    def _features(self, points: Tensor, graph: Tensor) -> Tensor:
        features = points
        for edge in self.edges:
            features = edge(features, graph)
        return features

    def _match(
        self, source: Tensor, source_features: Tensor, target: Tensor, target_features: Tensor, number: int
    ) -> tuple[Tensor, Tensor]:
        """Match the points and return the motion that fits the matches best."""
        number = min(number, len(self.likeness) - 1)
        a = self.attention(source_features, target_features)
        b = self.attention(target_features, source_features)
        unlike = torch.cdist(self.project(a), self.project(b)).square() / a.shape[-1]
        far = torch.cdist(source, target).square()
        scores = -unlike * self.likeness[number].exp() - far * self.nearness[number].exp()
        matched = scores.softmax(dim=-1) @ target
        gap = (source - matched).square().sum(dim=-1)
        weights = (self.confidence(a)[..., 0] - gap * self.doubt[number].exp()).softmax(dim=-1)
        return weighted_rigid_motion(source, matched, weights)


def weighted_rigid_motion(source: Tensor, target: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the motion that best brings ``source (B, N, 3)`` onto ``target (B, N, 3)`` under weights ``(B, N)``.

    Kabsch's algorithm, in float64, since the gradient of the SVD is sensitive. Weights must sum to 1.
    """
    source, target, weights = source.double(), target.double(), weights.double()[..., None]
    source_mean, target_mean = (weights * source).sum(1, keepdim=True), (weights * target).sum(1, keepdim=True)
    covariance = (weights * (source - source_mean)).transpose(1, 2) @ (target - target_mean)
    u, _, vt = torch.linalg.svd(covariance + 1e-6 * torch.eye(3, dtype=torch.float64, device=source.device))
    sign = torch.det(u @ vt).sign()
    flip = torch.stack([torch.ones_like(sign), torch.ones_like(sign), sign], dim=-1)
    rotation = vt.transpose(1, 2) @ (flip[..., None] * u.transpose(1, 2))
    translation = (target_mean - source_mean @ rotation.transpose(1, 2))[:, 0]
    return rotation.float(), translation.float()


def apply_motion(points: Tensor, rotation: Tensor, translation: Tensor) -> Tensor:
    """Return points ``(B, N, 3)`` moved by ``rotation (B, 3, 3)`` and ``translation (B, 3)``."""
    return points @ rotation.transpose(1, 2) + translation[:, None]


def compose(second: tuple[Tensor, Tensor], first: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the motion that does the first and then the second; each is ``(B, 3, 3)``, ``(B, 3)``."""
    rotation = second[0] @ first[0]
    return rotation, (second[0] @ first[1][..., None])[..., 0] + second[1]
