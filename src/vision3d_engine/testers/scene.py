"""Testing whole scenes that are predicted fragment by fragment."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from vision3d_engine.core.errors import ConfigError, DataError, ResultError, listed
from vision3d_engine.core.tree import describe, map_leaves
from vision3d_engine.data.collate import CLOUD_KEYS, collate_packed
from vision3d_engine.data.fragments import count_points, find_cloud, take_points
from vision3d_engine.data.packing import PACKING_KEYS
from vision3d_engine.data.split import split_batch
from vision3d_engine.testers.base import BaseTester
from vision3d_engine.testers.scene_votes import VOTES, SceneVotes, checked_fragment

Fragment = dict[str, Any]


class SceneTester(BaseTester):
    """Tests where a batch is one scene, cut into fragments whose votes for each point are put together again.

    Pipeline: before_test_epoch; for each scene before_test_step, split_scene, test_step for each batch of its
    fragments, eval_step and after_test_step once for the whole; then after_test_epoch. ``iteration`` counts scenes.

    A batch of the loader is a scene as the data set returns it (``batch_size=None``), or one that was collated with
    ``batch_size=1``, by `collate_packed` or torch's default; all but `before_test_step` gets the scene itself, whose
    cloud ``(N, C)`` lies under a name that `collate_packed` knows (``points``, ``coord``, ...).

    Attributes:
        fragment_batch_size: most fragments of a batch.
        fragment_batch_points: most points of a batch, None for any number; a fragment with more is alone in its batch.
        vote: ``"logits"`` adds up logits, ``"softmax"`` their softmax, as Pointcept and KPConv do.
    """

    fragment_batch_size: int = 8
    fragment_batch_points: int | None = None
    vote: str = "logits"

    def split_scene(self, iteration: int, data_dict: Any) -> Iterable[Fragment]:
        """Return or yield the fragments of a scene; together they must have every point.

        Each is a dict of what the network takes, such as `take_points` makes, with ``index (n,)``, which points of the
        scene its own are, and possibly ``weight (n,)``, what its votes weigh (1 by default). Yielded one by one, no
        more of them are in memory than one batch has; each is copied. By default the whole scene is one fragment.
        """
        return [take_points(data_dict, torch.arange(count_points(data_dict)))]

    def augmentations(self) -> Sequence[Callable[[Fragment], Fragment]]:
        """Return functions of a fragment, each of which returns another view of it that votes too.

        Each gets a copy of its own, which it may change in place. By default there is none, and only fragments as
        `split_scene` returns them vote.
        """
        return ()

    def collate_fragments(self, fragments: Sequence[Fragment]) -> dict[str, Any]:
        """Return the batch that `test_step` gets of fragments; by default `collate_packed` joins them."""
        return collate_packed(fragments)

    def fragment_logits(self, output_dict: Any) -> torch.Tensor:
        """Return the logits ``(points, C)`` of a batch of fragments; by default ``output_dict["logits"]``."""
        if not isinstance(output_dict, Mapping) or "logits" not in output_dict:
            got = listed(output_dict) if isinstance(output_dict, Mapping) else describe(output_dict)
            message = f"test_step returned no 'logits' of fragments (got: {got}); expected (points, C). "
            raise ResultError(message + "Return them under this name, or override fragment_logits")
        return output_dict["logits"]

    def _cases(self, iteration: int, data_dict: Any) -> Iterable[tuple[Any, Any]]:
        self._check_attributes()
        scene, where = scene_of(data_dict), f"scene {iteration}"
        if (num_points := count_points(scene)) == 0:
            name = f" ('{scene['name']}')" if isinstance(scene.get("name"), str) else ""
            message = f"{where}{name} is empty: leave it out by raise SkipBatch in before_test_step"
            raise DataError(f"{message}, or remove it from the data set")
        votes = SceneVotes(num_points, self.vote, where)
        views = (checked_fragment(each, num_points, where) for each in self._views(iteration, scene))
        for fragments in self._batches(views):
            output_dict = self._tested(iteration, self.collate_fragments(fragments))
            votes.add(fragments, self.fragment_logits(output_dict))
        return [(scene, votes.output(scene.get("inverse")))]

    def _views(self, iteration: int, scene: Any) -> Iterator[Any]:
        """Yield each fragment, followed by its other views; none shares memory with another one, or with the scene."""
        augmentations = self.augmentations()
        for fragment in self.split_scene(iteration, scene) or ():
            yield map_leaves(_copied, fragment)
            yield from (augment(map_leaves(_copied, fragment)) for augment in augmentations)

    def _batches(self, fragments: Iterable[Fragment]) -> Iterator[list[Fragment]]:
        """Yield as many fragments in a row as both bounds allow, and one at least."""
        batch, points = [], 0
        for fragment in fragments:
            points += len(fragment["index"])
            is_full = len(batch) == self.fragment_batch_size or points > (self.fragment_batch_points or points)
            if batch and is_full:
                yield batch
                batch, points = [], len(fragment["index"])
            batch.append(fragment)
        if batch:
            yield batch

    def _check_attributes(self) -> None:
        points = self.fragment_batch_points
        expected = {
            "fragment_batch_size": (_is_count(self.fragment_batch_size), "a whole number above 0"),
            "fragment_batch_points": (points is None or _is_count(points), "a whole number above 0, or None"),
            "vote": (self.vote in VOTES, f"one of {listed(map(repr, VOTES))}"),
        }
        for name, (fits, what) in expected.items():
            if not fits:
                raise ConfigError(f"{type(self).__name__}.{name} is {getattr(self, name)!r}; set it to {what}")


def scene_of(data_dict: Any) -> dict[str, Any]:
    """Return the one scene of a batch; a dict with a cloud ``(N, C)`` that says nothing of other clouds is one itself.

    Raises:
        DataError: when a batch holds several.
    """
    if find_cloud(data_dict) is not None and not any(key in data_dict for key in PACKING_KEYS):
        return data_dict
    scenes, _ = split_batch(data_dict, {})
    if len(scenes) != 1:
        message = f"a SceneTester takes one scene a batch, and this one holds {len(scenes)}: give its loader "
        message += "batch_size=1, or None for scenes as the data set returns them, with the cloud (N, C) under one of "
        raise DataError(f"{message}the names {listed(CLOUD_KEYS)}")
    return scenes[0]


def _copied(leaf: Any) -> Any:
    if isinstance(leaf, torch.Tensor):
        return leaf.clone()
    return leaf.copy() if isinstance(leaf, np.ndarray) else leaf


def _is_count(number: Any) -> bool:
    return isinstance(number, int) and number > 0
