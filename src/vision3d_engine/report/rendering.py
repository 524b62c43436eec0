"""Clouds as pictures: points and lines seen from above and aside, the nearer in front, shaded where depth jumps."""

import base64
import io

import numpy as np

from vision3d_engine.report.markup import Markup
from vision3d_engine.report.panels import Panel, thinned

_OVERSAMPLED = 2
_MOST_POINTS = 60_000
_LINE_POINTS = 250
_MARGIN = 0.06
_AZIMUTH, _ELEVATION = np.radians([-60, 25])
_SHADE, _REACH = 6.0, 3  # how dark a jump of depth is, and over how many pixels it is seen


def png(image: np.ndarray) -> bytes:
    """Return an image ``(H, W, 4)`` in uint8 as PNG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def data_uri(image: np.ndarray) -> Markup:
    """Return an image as an address that holds it."""
    return Markup("data:image/png;base64," + base64.b64encode(png(image)).decode())


def render(panel: Panel, width: int = 340, height: int = 280) -> np.ndarray:
    """Return a picture ``(height, width, 4)`` in uint8, transparent where there is nothing; z points up."""
    from PIL import Image

    shown = thinned(panel, _MOST_POINTS)
    size = np.array([width, height]) * _OVERSAMPLED
    seen = _seen(shown.points)
    scale, middle = _fit(seen, size)
    radius = int(np.clip(0.35 * np.sqrt(size.prod() / max(len(seen), 1)), 2, 7))
    image = _Image(size)
    image.draw(_on_picture(seen, scale, middle, size), shown.colors, radius)
    lines = _line_points(seen, shown.edges)
    image.draw(_on_picture(lines, scale, middle, size), np.repeat(shown.edge_colors, _LINE_POINTS, axis=0), 1)
    return np.asarray(Image.fromarray(image.shaded()).reduce(_OVERSAMPLED))


def _seen(points: np.ndarray) -> np.ndarray:
    """Return points as a camera sees them that is far away: right, up, and towards it."""
    sine, cosine = np.sin([_AZIMUTH, _ELEVATION]), np.cos([_AZIMUTH, _ELEVATION])
    toward = np.array([cosine[1] * cosine[0], cosine[1] * sine[0], sine[1]])
    right = np.array([-sine[0], cosine[0], 0])
    return points.astype(np.float64) @ np.stack([right, np.cross(toward, right), toward], axis=1)


def _fit(seen: np.ndarray, size: np.ndarray) -> tuple[float, np.ndarray]:
    """Return pixels a unit, and what lies in the middle of the picture."""
    low, high = seen.min(axis=0), seen.max(axis=0)
    extent = np.maximum(high - low, 1e-9 * max(float((high - low).max()), 1e-12))
    return float(((1 - 2 * _MARGIN) * size / extent[:2]).min()), (low + high) / 2


def _on_picture(seen: np.ndarray, scale: float, middle: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Return columns, rows and nearness, all in pixels."""
    return (seen - middle) * scale * (1, -1, 1) + (*(size / 2), 0)


def _line_points(seen: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Return points along lines."""
    share = np.linspace(0, 1, _LINE_POINTS)[:, np.newaxis]
    start, end = seen[edges[:, :1]], seen[edges[:, 1:]]
    return (start + share * (end - start)).reshape(-1, 3)


class _Image:
    """Colours and depths of pixels; whatever is nearer hides what was drawn before.

    Args:
        size: width and height.
    """

    def __init__(self, size: np.ndarray) -> None:
        self._size = size
        width, height = size
        self._colors = np.zeros((height, width, 4), np.uint8)
        self._depth = np.full((height, width), -np.inf)

    def draw(self, places: np.ndarray, colors: np.ndarray, radius: int) -> None:
        """Draw discs of a radius in pixels, at columns, rows and depths ``(N, 3)``."""
        order = np.argsort(places[:, 2], kind="stable")  # of several on one pixel the last one counts
        disc = _disc(radius)
        pixels = (np.rint(places[order, np.newaxis, :2]).astype(np.int64) + disc).reshape(-1, 2)
        depth, colors = (np.repeat(each[order], len(disc), axis=0) for each in (places[:, 2], colors))
        inside = ((pixels >= 0) & (pixels < self._size)).all(axis=1)
        column, row = pixels[inside].T
        is_seen = depth[inside] >= self._depth[row, column]
        row, column = row[is_seen], column[is_seen]
        self._depth[row, column] = depth[inside][is_seen]
        self._colors[row, column] = np.pad(colors[inside][is_seen], ((0, 0), (0, 1)), constant_values=255)

    def shaded(self) -> np.ndarray:
        """Return the colours ``(H, W, 4)``, darker where something beside is nearer, as eye-dome lighting does."""
        filled = np.isfinite(self._depth)
        padded = np.pad(self._depth, _REACH, constant_values=-np.inf)
        height, width = self._depth.shape
        behind = np.zeros_like(self._depth)
        for down, right in ((0, 1), (2, 1), (1, 0), (1, 2)):
            beside = padded[down * _REACH : down * _REACH + height, right * _REACH : right * _REACH + width]
            nearer = np.subtract(beside, self._depth, where=filled & np.isfinite(beside), out=np.zeros_like(behind))
            behind += np.clip(nearer, 0, None)
        light = np.exp(-_SHADE * behind / (4 * max(self._size)))
        shaded = self._colors.copy()
        shaded[..., :3] = np.rint(self._colors[..., :3] * np.clip(light, 0.35, 1)[..., np.newaxis])
        return shaded


def _disc(radius: int) -> np.ndarray:
    """Return the pixels ``(K, 2)`` of a disc."""
    across = np.arange(-radius, radius + 1)
    offsets = np.stack(np.meshgrid(across, across), axis=-1).reshape(-1, 2)
    return offsets[(offsets**2).sum(axis=1) <= (radius + 0.3) ** 2]
