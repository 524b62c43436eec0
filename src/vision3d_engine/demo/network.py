"""A small network on point clouds, with one EdgeConv: Wang et al., "Dynamic Graph CNN", ACM TOG 2019."""

from itertools import pairwise

import torch
from torch import Tensor, nn


def nearest_neighbours(points: Tensor, k: int) -> Tensor:
    """Return the indices ``(B, N, k)`` of the k points nearest to each point of ``(B, N, C)``, itself among them."""
    return torch.cdist(points, points).topk(k, largest=False, sorted=False).indices


class ShapeClassifier(nn.Module):
    """Point clouds ``(B, N, 3)`` to logits ``(B, num_classes)``; about 20,000 parameters."""

    def __init__(self, num_classes: int = 10, k: int = 10) -> None:
        super().__init__()
        self.k = k
        self.edge = _layers(6, 32)
        self.point = _layers(35, 64, 128)
        self.head = nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, num_classes))

    def forward(self, points: Tensor) -> Tensor:
        """Return the logits of each cloud."""
        batch = torch.arange(len(points), device=points.device)[:, None, None]
        offsets = points[batch, nearest_neighbours(points, self.k)] - points[:, :, None]
        edges = torch.cat([points[:, :, None].expand_as(offsets), offsets], dim=-1)
        local = self.edge(edges.flatten(0, 2)).view(*edges.shape[:3], -1).amax(dim=2)
        features = self.point(torch.cat([points, local], dim=-1).flatten(0, 1))
        return self.head(features.view(*points.shape[:2], -1).amax(dim=1))


def _layers(*widths: int) -> nn.Sequential:
    """Return linear layers of these widths, each with norm and activation, on rows ``(M, C)``."""
    rows = (nn.Sequential(nn.Linear(a, b, bias=False), nn.BatchNorm1d(b), nn.ReLU()) for a, b in pairwise(widths))
    return nn.Sequential(*rows)
