"""A point network in the manner of Qi et al., "PointNet++", NeurIPS 2017, on packed clouds of varying size."""

from itertools import pairwise

import torch
from torch import Tensor, nn

Level = tuple[Tensor, list[int], Tensor]  # points (sum, 3) of all clouds, points of each, features (sum, C)


def thin(points: Tensor, lengths: list[int], stride: int) -> tuple[Tensor, list[int]]:
    """Return every n-th point ``(sum, ...)`` of each cloud, which lies in random order, and how many these are."""
    clouds = [cloud[::stride] for cloud in points.split(lengths)]
    return torch.cat(clouds), [len(cloud) for cloud in clouds]


@torch.no_grad()
def nearest(queries: Tensor, query_lengths: list[int], points: Tensor, lengths: list[int], k: int) -> Tensor:
    """Return the indices ``(queries, k)`` of the points nearest to each query in its own cloud; each has k or more."""
    found, start = [], 0
    for query, cloud in zip(queries.split(query_lengths), points.split(lengths), strict=True):
        found.append(torch.cdist(query, cloud).topk(k, largest=False, sorted=False).indices + start)
        start += len(cloud)
    return torch.cat(found)


def layers(*widths: int) -> nn.Sequential:
    """Return linear layers of these widths, each with norm and activation, on rows ``(M, C)``."""
    rows = (nn.Sequential(nn.Linear(a, b, bias=False), nn.BatchNorm1d(b), nn.ReLU()) for a, b in pairwise(widths))
    return nn.Sequential(*rows)


class Down(nn.Module):
    """Describes a thinned cloud: each point by the maximum over its k neighbours in the finer one."""

    def __init__(self, in_width: int, width: int, radius_m: float, k: int = 16, stride: int = 4) -> None:
        super().__init__()
        self.radius_m, self.k, self.stride = radius_m, k, stride
        self.layers = layers(in_width + 3, width, width)

    def forward(self, points: Tensor, lengths: list[int], features: Tensor) -> Level:
        """Return points ``(M, 3)``, lengths and features ``(M, width)`` of the thinned clouds."""
        centers, center_lengths = thin(points, lengths, self.stride)
        neighbours = nearest(centers, center_lengths, points, lengths, self.k)
        offsets = (points[neighbours] - centers[:, None]) / self.radius_m
        edges = torch.cat([features[neighbours], offsets], dim=-1).flatten(0, 1)
        return centers, center_lengths, self.layers(edges).unflatten(0, neighbours.shape).amax(dim=1)


class Up(nn.Module):
    """Brings features of a thinned cloud back to the finer one, by three nearest points, and adds what that knew."""

    def __init__(self, coarse_width: int, width: int, out_width: int) -> None:
        super().__init__()
        self.layers = layers(coarse_width + width, out_width)

    def forward(self, fine: Level, coarse: Level) -> Level:
        """Return the finer level with features ``(N, out_width)``."""
        (points, lengths, features), (centers, center_lengths, coarse_features) = fine, coarse
        neighbours = nearest(points, lengths, centers, center_lengths, 3)
        weights = 1 / ((points[:, None] - centers[neighbours]).norm(dim=-1, keepdim=True) + 1e-3)
        spread = (coarse_features[neighbours] * weights).sum(dim=1) / weights.sum(dim=1)
        return points, lengths, self.layers(torch.cat([features, spread], dim=-1))


class SegmentationModel(nn.Module):
    """Points ``(sum, 3)`` of clouds in metres, z up, each of at least 256, to logits ``(sum, num_classes)``."""

    def __init__(self, num_classes: int, width: int = 32) -> None:
        super().__init__()
        self.down = nn.ModuleList([Down(1, width, 0.25), Down(width, 2 * width, 0.5), Down(2 * width, 4 * width, 1.0)])
        self.up = nn.ModuleList([Up(4 * width, 2 * width, 2 * width), Up(2 * width, width, width), Up(width, 1, width)])
        self.head = nn.Linear(width, num_classes)

    def forward(self, points: Tensor, lengths: list[int]) -> Tensor:
        """Return the logits of each point; heights are all that it knows of a single one."""
        levels = [(points, lengths, points[:, 2:])]
        for down in self.down:
            levels.append(down(*levels[-1]))
        coarse = levels.pop()
        for up in self.up:
            coarse = up(levels.pop(), coarse)
        return self.head(coarse[2])
