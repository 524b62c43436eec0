"""Images, figures and numbers as a script has them, made one form for all writers."""

from typing import Any

import numpy as np

from vision3d_engine.core.errors import DataError
from vision3d_engine.core.tree import describe, host_array

_LAYOUTS = ("HW", "CHW", "HWC", "NCHW", "NHWC")
_CHANNELS = (1, 3, 4)
_WHITE = 255


def as_images(images: Any, dataformats: str | None = None) -> np.ndarray:
    """Return images ``(N, H, W, C)`` in uint8, of 1, 3 or 4 channels; a tensor is read, so the host waits.

    Args:
        images: uint8, or floats from 0 to 1, which are clipped (NaN is black).
        dataformats: the axes, one of HW, CHW, HWC, NCHW, NHWC; None where only one of them fits the shape.

    Raises:
        DataError: for another type, or a shape that does not fit or fits two.
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
    clipped = np.clip(np.nan_to_num(images.astype(np.float32), nan=0.0), 0, 1)
    return np.rint(clipped * _WHITE).astype(np.uint8)


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
