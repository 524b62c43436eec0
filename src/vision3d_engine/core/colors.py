"""Colours of points: as they are given, of classes, and of numbers; always ``(N, 3)`` in uint8.

Nothing here draws; whatever shows clouds (writers, viewers) colours them alike. Tensors are read, so the host waits.
"""

from functools import lru_cache
from typing import Any

import numpy as np

from vision3d_engine.core.errors import DataError
from vision3d_engine.core.tree import describe, host_array

GREY, GREEN, RED, BLUE, ORANGE = np.array(
    [[128, 128, 128], [40, 170, 70], [220, 50, 40], [60, 110, 200], [240, 150, 30]], dtype=np.uint8
)
PALETTE_SIZE = 256
_WHITE = 255
_STEPS = 18  # levels of each channel among which the palette is chosen
_LIGHTNESS, _CHROMA = (0.45, 0.85), 0.09  # seen on black and on white, and not taken for grey

# Powers 0 to 6 of the red, green and blue of matplotlib's viridis: Matt Zucker, "Polynomial approximations of
# matplotlib colormaps", https://www.shadertoy.com/view/WlfXRN, in the public domain (CC0).
_VIRIDIS = np.array(
    [
        [0.2777273272234177, 0.005407344544966578, 0.3340998053353061],
        [0.1050930431085774, 1.404613529898575, 1.384590162594685],
        [-0.3308618287255563, 0.214847559468213, 0.09509516302823659],
        [-4.634230498983486, -5.799100973351585, -19.33244095627987],
        [6.228269936347081, 14.17993336680509, 56.69055260068105],
        [4.776384997670288, -13.74514537774601, -65.35303263337234],
        [-5.435455855934631, 4.645852612178535, 26.3124352495832],
    ]
)
# Linear RGB to cone responses, and their cube roots to OKLab: Björn Ottosson, https://bottosson.github.io/posts/oklab.
_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_OKLAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def as_colors(colors: Any, count: int, what: str = "colors") -> np.ndarray:
    """Return colours ``(count, 3)`` in uint8.

    Args:
        colors: ``(count, 3)``, or ``(3,)`` for all. Whole numbers, and floats of which one is above 1, are 0 to 255;
            all other floats are 0 to 1.
        count: number of points.
        what: name of the colours in errors.

    Raises:
        DataError: for another shape, another number, or a colour out of 0 to 255.
    """
    found = host_array(colors)
    if found.shape not in ((count, 3), (3,)) or found.dtype.kind not in "iuf":
        got = f"{describe(colors)} in {found.dtype}"
        message = (
            f"{what}: got {got}, expected numbers of shape ({count}, 3), one colour for each point, or (3,) for all"
        )
        raise DataError(message)
    if found.size and not (found.min() >= 0 and found.max() <= _WHITE):
        lowest, highest = found.min(), found.max()
        message = f"{what}: got numbers from {lowest} to {highest}, expected 0 to 1 or 0 to 255. Scale or clip them"
        raise DataError(message)
    is_share = found.dtype.kind == "f" and found.size > 0 and found.max() <= 1
    scaled = np.rint(found.astype(np.float64) * (_WHITE if is_share else 1)).astype(np.uint8)
    return np.array(np.broadcast_to(scaled, (count, 3)))


def label_colors(labels: Any, palette: Any = None) -> np.ndarray:
    """Return the colours ``(N, 3)`` of labels ``(N,)``; negative labels, such as an ignored -1, are grey.

    Args:
        labels: whole numbers, as a tensor of any device or an array.
        palette: ``(C, 3)``, the colour of each class, as `as_colors` takes it; None for a fixed one of 256 colours, of
            which the first differ most. Labels from 256 on begin it again.

    Raises:
        DataError: for labels that are no whole numbers, or of a class that the palette lacks.
    """
    found = host_array(labels).reshape(-1)
    if found.dtype.kind not in "iub":
        message = f"labels: got {describe(labels)} in {found.dtype}, expected whole numbers, the class of each point. "
        raise DataError(message + "Take argmax of scores, or draw numbers by values=")
    table = default_palette() if palette is None else as_colors(palette, len(palette), "palette")
    found = found.astype(np.int64)
    if palette is not None and found.size and found.max() >= len(table):
        message = (
            f"labels: got the class {found.max()}, but the palette has {len(table)} colours. Give it more, or none"
        )
        raise DataError(message)
    return np.where(found[:, None] < 0, GREY, table[found % len(table)])


def value_colors(values: Any, lo: float | None = None, hi: float | None = None) -> np.ndarray:
    """Return the colours ``(N, 3)`` of numbers ``(N,)``, from dark blue over green to yellow (viridis); NaN is grey.

    Args:
        values: numbers, as a tensor of any device or an array.
        lo: what is darkest (default: the least finite value); whatever is below looks the same.
        hi: what is brightest (default: the greatest finite value).

    Raises:
        DataError: for values that are no real numbers.
    """
    found = host_array(values).reshape(-1)
    if found.dtype.kind not in "iufb":
        raise DataError(f"values: got {describe(values)} in {found.dtype}, expected real numbers, one for each point")
    found = found.astype(np.float64)
    finite = found[np.isfinite(found)] if np.isfinite(found).any() else np.zeros(1)
    least = finite.min() if lo is None else lo
    width = (finite.max() if hi is None else hi) - least
    share = np.clip((np.nan_to_num(found, nan=least) - least) / (width if width > 0 else 1), 0, 1)
    colors = share[:, None] ** np.arange(len(_VIRIDIS)) @ _VIRIDIS
    return np.where(np.isnan(found)[:, None], GREY, _as_bytes(colors))


@lru_cache(maxsize=1)
def default_palette() -> np.ndarray:
    """Return 256 colours ``(256, 3)``, each as far from all before it as can be, and from black, white and grey.

    Distances are those of OKLab. The way: Glasbey et al., "Colour displays for categorical images", 2007.
    """
    levels = np.linspace(0, 1, _STEPS)
    candidates = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    places = _oklab(candidates)
    is_fit = (places[:, 0] > _LIGHTNESS[0]) & (places[:, 0] < _LIGHTNESS[1])
    is_fit &= np.linalg.norm(places[:, 1:], axis=1) > _CHROMA
    candidates, places = candidates[is_fit], places[is_fit]
    distance = np.full(len(places), np.inf)
    chosen = [int(np.argmin(np.linalg.norm(candidates - BLUE / _WHITE, axis=1)))]
    for _ in range(PALETTE_SIZE - 1):
        distance = np.minimum(distance, np.linalg.norm(places - places[chosen[-1]], axis=1))
        chosen.append(int(distance.argmax()))
    return _as_bytes(candidates[chosen])


def _oklab(colors: np.ndarray) -> np.ndarray:
    """Return sRGB colours ``(N, 3)``, 0 to 1, in OKLab, in which distances are about as they are seen."""
    is_dark = colors <= 0.04045  # noqa: PLR2004  where sRGB is linear
    linear = np.where(is_dark, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
    return np.cbrt(linear @ _CONES.T) @ _OKLAB.T


def _as_bytes(colors: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(colors, 0, 1) * _WHITE).astype(np.uint8)
