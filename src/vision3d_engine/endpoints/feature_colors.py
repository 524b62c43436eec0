"""Features of points as colours."""

import torch

_SPREAD = 2  # standard deviations from grey to full colour
_LEAST = 0.01  # a component of less than this share of the first one is noise, and stays grey


def principal_colors(features: torch.Tensor) -> torch.Tensor:
    """Return colours ``(N, 3)`` from 0 to 1 of features ``(N, C)``: alike where features are.

    Red, green and blue are the first three principal components, as in the figures of DINOv2 (Oquab et al. 2024) and
    Sonata (Wu et al. 2025), each in its own standard deviation. Exact and without random numbers, so a captured step
    draws what others do; of each component the sign is chosen by its largest entry, so that colours do not flip.
    Numbers that are not finite count as 0.
    """
    whole = torch.nan_to_num(features.detach().float(), nan=0.0, posinf=0.0, neginf=0.0)
    centred = whole - whole.mean(dim=0)
    axes = torch.linalg.eigh(centred.T @ centred).eigenvectors.flip(1)[:, :3]
    largest = axes.gather(0, axes.abs().argmax(dim=0, keepdim=True))
    parts = centred @ (axes * torch.where(largest < 0, -1, 1))
    spread = parts.std(dim=0, correction=0)
    least = (_LEAST * spread[:1]).clamp(min=torch.finfo(parts.dtype).tiny)
    shares = parts / (2 * _SPREAD * torch.maximum(spread, least))
    return torch.nn.functional.pad((shares + 0.5).clamp(0, 1), (0, 3 - parts.shape[1]), value=0.5)
