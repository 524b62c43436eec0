"""Intersection over union of each class."""

from collections.abc import Sequence

import torch
from torch import Tensor


def confusion(logits: Tensor, labels: Tensor) -> Tensor:
    """Return how many points of each class (rows) were taken for each (columns): ``(N, C)``, ``(N,)`` to ``(C, C)``."""
    num_classes = logits.shape[1]
    pairs = labels * num_classes + logits.argmax(dim=1)
    return torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes)


def class_iou(confusions: Sequence[Tensor]) -> Tensor:
    """Return the IoU ``(C,)`` of each class over all clouds together, NaN for a class that is nowhere."""
    total = torch.stack(list(confusions)).sum(dim=0)
    hits = total.diag()
    return hits / (total.sum(dim=0) + total.sum(dim=1) - hits)
