"""Batches that have more points than their bound, since samples have more than their lengths say: told once."""

from collections.abc import Callable, Iterator
from typing import Any

from vision3d_engine.data.collate import points_of_batch
from vision3d_engine.data.endless_stream import Place

_Placed = Iterator[tuple[Place, Any]]
_SamplesAt = Callable[[Place], list[int] | None]


class PointBound:
    """Counts the points of batches by the lengths that `collate_packed` writes; of other batches nothing is known.

    Args:
        sampler: of the loader; only one with ``cloud_lengths`` is watched.
        name: what the loader is called in messages.
        say: takes a message and its level.
    """

    def __init__(self, sampler: Any, name: str, say: Callable[[str, str], None]) -> None:
        self._stated: Any = getattr(sampler, "cloud_lengths", None)
        self._most: int = getattr(sampler, "batch_points", 0)
        self._name, self._say = name, say
        self._is_told = self._stated is None

    def watch(self, batches: _Placed, samples_at: _SamplesAt) -> _Placed:
        """Return the batches; the first one that exceeds the bound is told of as it passes."""
        return batches if self._is_told else self._watched(batches, samples_at)

    def _watched(self, batches: _Placed, samples_at: _SamplesAt) -> _Placed:
        for place, batch in batches:
            points = None if self._is_told else points_of_batch(batch)
            if points and self._exceeds(points):
                self._compare(points, samples_at(place) or [])
            yield place, batch

    def _exceeds(self, points: list[int]) -> bool:
        """Tell whether a batch has more points than its bound; a large sample that is alone has not."""
        return sum(points) > self._most and (len(points) > 1 or points[0] > self._stated.max())

    def _compare(self, points: list[int], samples: list[int]) -> None:
        """Tell of the sample that exceeds its length most."""
        more = [found - int(self._stated[index]) for found, index in zip(points, samples, strict=False)]
        if max(more, default=0) <= 0:
            return
        self._is_told = True
        worst = more.index(max(more))
        total, found, index = sum(points), points[worst], samples[worst]
        self._say(_MORE.format(self._name, total, self._most, index, found, self._stated[index]), "WARNING")


_MORE = (
    "the {}: a batch has {:,} points, more than batch_points={}. Sample {} has {:,} points in it, and a length of "
    "{:,}: let the lengths of the data set count what samples have after augmentation at most. Said once"
)
