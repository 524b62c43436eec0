"""Captured features as colours of the points that they belong to."""

from collections.abc import Iterator
from typing import Any

import torch

from vision3d_engine.core.errors import DataError, did_you_mean, shortened
from vision3d_engine.core.tree import describe, entries, leaves
from vision3d_engine.data.packing import PACKING_KEYS, Scope, read_packing
from vision3d_engine.endpoints.capture import Capture
from vision3d_engine.endpoints.feature_colors import principal_colors
from vision3d_engine.writers.clouds import as_clouds

_MOST_CLOUDS = 4  # of a batch
_XYZ = 3


class FeatureClouds:
    """Writes the points of a batch in the colours of captured features.

    Features are ``(N, C)``, ``(B, N, C)`` or ``(B, C, N)``, points ``(N, 3)`` or ``(B, N, 3)``; of several levels of
    detail under the same name those with as many points as there are features. Reads from the device.

    Args:
        writers: where clouds go.
        logger: is told, once a module, of features that belong to no points.
    """

    def __init__(self, writers: Any, logger: Any) -> None:
        self._writers, self._logger = writers, logger
        self._told: set[str] = set()

    def write(self, capture: Capture, name: str, features: torch.Tensor, dicts: tuple[Any, ...], step: int) -> None:
        """Write the clouds of one captured tensor; at most four of a batch.

        Args:
            capture: says what the points are called, and which channel is shown.
            name: of the tensor.
            features: the tensor.
            dicts: the batch, and what the step has returned for it.
            step: where they lie on the axis of the training's curves.

        Raises:
            DataError: when there are no points of this name.
        """
        found = _points_in(capture.clouds, dicts)
        matches = ((points, rows) for points in found if (rows := _rows_of(features, points)) is not None)
        points, rows = next(matches, (None, None))
        if points is None or rows is None:
            self._say_once(name, _mismatch(capture.clouds, name, features, found))
            return
        channel = capture.channel
        if channel is not None and not -rows.shape[1] <= channel < rows.shape[1]:
            self._say_once(name, f"channel {channel} of '{name}': it has {rows.shape[1]}; no cloud is written")
            return
        shown = principal_colors(rows) if channel is None else rows[:, channel].detach().float()
        kind, what = ("pca", "colors") if channel is None else (f"channel-{channel}", "values")
        flat = {"points": points.reshape(-1, _XYZ), what: shown}
        parts: dict[str, Any] = {part: _clouds_of(each, points, dicts[0]) for part, each in flat.items()}
        clouds = as_clouds(**parts)
        self._writers.points(f"endpoints/{name}/{kind}", clouds.points, clouds.colors, step)

    def _say_once(self, name: str, message: str) -> None:
        if name not in self._told:
            self._told.add(name)
            self._logger.warn(message)


def _points_in(key: Any, dicts: tuple[Any, ...]) -> list[torch.Tensor]:
    """Return the clouds under a name, of each level of detail.

    Raises:
        DataError: when there are none.
    """
    found = next((part for each in dicts for part in _entry(each, key)), None)
    points = [leaf for _, leaf in leaves(found) if isinstance(leaf, torch.Tensor) and leaf.shape[-1:] == (_XYZ,)]
    if points:
        return points
    known = [str(name) for each in dicts for name in entries(each) or {}]
    got = f"got {describe(found)}" if found is not None else f"there is no '{key}'{did_you_mean(str(key), known)}"
    message = (
        f"capture(clouds='{key}'): {got}, expected the points (N, 3) or (B, N, 3) of the batch, or a list of them "
    )
    raise DataError(message + f"for each level of detail (batch and output have: {shortened(known, 20)})")


def _entry(nest: Any, key: Any) -> Iterator[Any]:
    held = entries(nest) or {}
    if key in held or hasattr(nest, str(key)):
        yield held[key] if key in held else getattr(nest, str(key))


def _rows_of(features: torch.Tensor, points: torch.Tensor) -> torch.Tensor | None:
    """Return features as one row ``(C,)`` a point, in the order of the points; None when they are not of these."""
    count = points.numel() // _XYZ
    if features.dim() > 1 and features.numel() // max(features.shape[-1], 1) == count:
        return features.reshape(count, -1)
    if features.dim() == _XYZ and features.shape[0] * features.shape[2] == count:  # (B, C, N)
        return features.transpose(1, 2).reshape(count, -1)
    return None


def _clouds_of(rows: torch.Tensor, points: torch.Tensor, data_dict: Any) -> list[torch.Tensor]:
    """Return the rows of each of the first clouds."""
    if points.dim() > 2:  # noqa: PLR2004  (B, N, 3)
        return list(rows.split(points.shape[-2]))[:_MOST_CLOUDS]
    packed = [read_packing(key, part) or {} for key in PACKING_KEYS for part in _entry(data_dict, key)]
    for packing in Scope([packed]).nearest(len(points)):
        return packing.cut(rows, len(packing.lengths))[:_MOST_CLOUDS]
    return [rows]


def _mismatch(key: Any, name: str, features: torch.Tensor, points: list[torch.Tensor]) -> str:
    shapes = ", ".join(str(tuple(each.shape)) for each in points)
    return (
        f"capture(clouds='{key}'): the output {tuple(features.shape)} of '{name}' is of other points than {shapes}; no "
        "cloud of it is written. Expected (N, C), (B, N, C) or (B, C, N) with as many points. If a model thins points "
        f"out, let '{key}' in the batch be a list of all levels, or return the thinned ones and name them"
    )
