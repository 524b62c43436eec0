"""Images, figures and numbers as a script has them, made one form for all writers."""

from typing import Any

import numpy as np

from vision3d_engine.core.errors import DataError
from vision3d_engine.core.tree import describe, host_array

_LAYOUTS = ("HW", "CHW", "HWC", "NCHW", "NHWC")
_CHANNELS = (1, 3, 4)
_WHITE = 255
_ROUNDING = 1e-2  # what is cut off without a word: less than three of 255 levels


def as_images(images: Any, dataformats: str | None = None) -> np.ndarray:
    """Return images ``(N, H, W, C)`` in uint8, of 1, 3 or 4 channels; a tensor is read, so the host waits.

    Args:
        images: uint8, or floats from 0 to 1.
        dataformats: the axes, one of HW, CHW, HWC, NCHW, NHWC; None where only one of them fits the shape.

    Raises:
        DataError: for another type, floats out of 0 to 1 or NaN, or a shape that does not fit or fits two.
    """
    found = host_array(images)
    got = f"{describe(images)} in {found.dtype}"
    fitting = [layout for layout in _LAYOUTS if dataformats in (None, layout) and _fits(found.shape, layout)]
    if len(fitting) != 1:
        which = f"dataformats '{dataformats}'" if dataformats else f"one of {', '.join(_LAYOUTS)}"
        why = "which may be read as " + " or ".join(fitting) if fitting else f"expected {which}"
        raise DataError(f"image: got {got}, {why}. Say the axes by dataformats=, with C of 1, 3 or 4 channels")
    if found.dtype != np.uint8 and found.dtype.kind not in "fb":
        raise DataError(f"image: got {got}, expected uint8 (0 to 255) or floats (0 to 1). Convert it")
    return _as_bytes(_in_layout(found, fitting[0]))


def _in_layout(images: np.ndarray, layout: str) -> np.ndarray:
    """Return images ``(N, H, W, C)``."""
    images = images.transpose([layout.index(axis) for axis in "NHWC" if axis in layout])
    images = images if "C" in layout else images[..., np.newaxis]
    return images if "N" in layout else images[np.newaxis]


def _fits(shape: tuple[int, ...], layout: str) -> bool:
    return len(shape) == len(layout) and ("C" not in layout or shape[layout.index("C")] in _CHANNELS)


def _as_bytes(images: np.ndarray) -> np.ndarray:
    if images.dtype == np.uint8:
        return images
    shares = images.astype(np.float32)
    _refuse_other_range(shares)
    return np.rint(np.clip(shares, 0, 1) * _WHITE).astype(np.uint8)


def _refuse_other_range(shares: np.ndarray) -> None:
    """Raise `DataError` for numbers that are no shares of white, by more than interpolation and rounding make."""
    if not shares.size or (shares.min() >= -_ROUNDING and shares.max() <= 1 + _ROUNDING):
        return
    lowest, highest = shares.min(), shares.max()
    if not np.isfinite([lowest, highest]).all():
        count = np.count_nonzero(~np.isfinite(shares))
        raise DataError(f"image: got NaN or infinity in {count:,} numbers, expected floats from 0 to 1. Replace them")
    advice = "undo a normalisation, then clip them"
    if lowest >= 0 and highest > 2:  # noqa: PLR2004  no overshoot of an interpolation
        advice = "they look like 0 to 255, so divide them by 255 or convert them to uint8"
    raise DataError(f"image: got floats from {lowest:g} to {highest:g}, expected 0 to 1: {advice}")


def drawn(figure: Any) -> np.ndarray:
    """Return a figure of matplotlib as an image ``(H, W, 3)`` in uint8."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def finite_numbers(values: Any) -> tuple[np.ndarray, int]:
    """Return the finite numbers of a tensor or an array in one row, and how many others it holds.

    Raises:
        DataError: when they are no real numbers.
    """
    found = host_array(values).reshape(-1)
    if found.dtype.kind not in "biuf":
        raise DataError(f"values: got {describe(values)} in {found.dtype}, expected real numbers")
    found = found.astype(np.float64)
    finite = found[np.isfinite(found)]
    return finite, found.size - finite.size
