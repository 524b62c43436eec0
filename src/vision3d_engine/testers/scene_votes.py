"""What fragments say of the points of one scene, added up."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vision3d_engine.core.errors import DataError, ResultError
from vision3d_engine.core.tree import describe

VOTES = {"logits": "logits", "softmax": "probabilities"}  # what is added up, and the name of its mean


class SceneVotes:
    """Sums of weighted votes for each point of a scene, on the device, in float32 or wider.

    The points of one fragment are all different, so that its votes are added without a race, and fragments follow in
    their order: the sums have the same bits every time.

    Args:
        num_points: of the scene.
        vote: one of `VOTES`.
        where: says which scene it is, for messages.
    """

    def __init__(self, num_points: int, vote: str, where: str) -> None:
        self._num_points, self._vote, self._where = num_points, vote, where
        self._sums = self._weights = self._visits = torch.empty(0)
        self._expected_visits = 0

    def add(self, fragment: Mapping[str, Any], logits: Tensor) -> None:
        """Add the votes of a fragment, with ``index (n,)`` and possibly ``weight (n,)``; ``logits`` is ``(n, C)``."""
        if not self._expected_visits:
            self._begin(logits)
        votes = logits.detach().to(self._sums.dtype)
        votes = votes.softmax(dim=1) if self._vote == "softmax" else votes
        weight = torch.ones(len(votes)) if fragment.get("weight") is None else fragment["weight"]
        index, weight = fragment["index"].to(votes.device), weight.to(votes)
        self._sums[index] += votes * weight[:, None]
        self._weights[index] += weight
        self._visits[index] += 1
        self._expected_visits += len(index)

    def _begin(self, logits: Tensor) -> None:
        dtype = torch.promote_types(logits.dtype, torch.float32)
        self._sums = logits.new_zeros((self._num_points, logits.shape[1]), dtype=dtype)
        self._weights = logits.new_zeros(self._num_points, dtype=dtype)
        self._visits = logits.new_zeros(self._num_points, dtype=torch.long)

    def output(self, inverse: Any = None) -> dict[str, Tensor]:
        """Return the mean of the votes for each point, and its class ``prediction``; of each raw one with ``inverse``.

        Raises:
            DataError: when a point has no vote, a fragment names one twice, or ``inverse`` points elsewhere.
        """
        self._check()
        means = self._sums / self._weights[:, None]
        found = {VOTES[self._vote]: means, "prediction": means.argmax(dim=1)}
        if inverse is None:
            return found
        inverse = checked_index("data_dict['inverse']", inverse, self._num_points, self._where).to(means.device)
        return {name: each[inverse] for name, each in found.items()}

    def _check(self) -> None:
        if not self._expected_visits:
            raise DataError(f"split_scene yields no point of {self._where}: yield fragments that cover all of them")
        without = (self._weights <= 0).nonzero()[:, 0]
        if len(without) > 0:
            message = f"{len(without)} of {self._num_points} points of {self._where} are in no fragment with a weight "
            message += f"above 0, the first is {int(without[0])}: let split_scene yield fragments that cover them, or "
            raise DataError(message + "leave them out of the scene and bring them back by data_dict['inverse']")
        if int(self._visits.sum()) != self._expected_visits:
            message = f"a fragment of {self._where} has a point twice in its index, so one of its votes would be lost"
            raise DataError(f"{message}: let split_scene yield each point once a fragment (index.unique())")


def checked_fragment(fragment: Any, num_points: int, where: str) -> dict[str, Any]:
    """Return a fragment; refuse one without an index into the scene, or with weights that do not fit."""
    if not isinstance(fragment, dict):
        raise DataError(f"a fragment of {where} is {describe(fragment)}; split_scene must yield dicts with 'index'")
    index = checked_index("fragment['index']", fragment.get("index"), num_points, where)
    weight = fragment.get("weight")
    if weight is not None and (not isinstance(weight, Tensor) or weight.shape != index.shape):
        message = f"fragment['weight'] of {where} is {describe(weight)}; expected a tensor {tuple(index.shape)}"
        raise DataError(f"{message}, one weight for each point of its index")
    return fragment


def checked_index(name: str, index: Any, num_points: int, where: str) -> Tensor:
    """Return an index of points; refuse what is none, or lies outside of the scene (which waits for the device)."""
    is_index = isinstance(index, Tensor) and index.ndim == 1 and index.dtype == torch.long
    if not is_index or bool(((index < 0) | (index >= num_points)).any()):
        got = describe(index) if not is_index else f"numbers from {int(index.min())} to {int(index.max())}"
        message = f"{name} of {where} is {got}; expected a tensor (n,) of int64"
        raise DataError(f"{message}, the rows of its points among the {num_points} of the scene")
    return index


def checked_logits(logits: Any, rows: int, where: str) -> Tensor:
    """Return the logits of a batch of fragments; refuse what has not one row a point."""
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != rows:  # noqa: PLR2004  (points, classes)
        message = (
            f"the logits of fragments of {where} are {describe(logits)}; expected a tensor ({rows}, C), one row a "
        )
        raise ResultError(message + "point of the packed batch. Return them from test_step or fragment_logits")
    return logits
