"""What fragments say of the points of one scene, added up."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vision3d_engine.core.errors import DataError, ResultError, listed
from vision3d_engine.core.tree import describe
from vision3d_engine.data.fragments import find_cloud

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

    def add(self, fragments: Sequence[Mapping[str, Any]], logits: Any) -> None:
        """Add the votes of a batch of fragments, with ``index (n,)`` and possibly ``weight (n,)``.

        Args:
            fragments: as `checked_fragment` returns them.
            logits: ``(points, C)``, one row a point of the fragments in their order.

        Raises:
            DataError: when a fragment has not one point for each of its index.
            ResultError: when logits have another form, or other classes than those of the fragments before.
        """
        lengths = [len(fragment["index"]) for fragment in fragments]
        _check_lengths(fragments, lengths, self._where)
        classes = self._sums.shape[1] if self._expected_visits else None
        rows = checked_logits(logits, sum(lengths), classes, self._where)
        if not self._expected_visits:
            self._begin(rows)
        for fragment, own in zip(fragments, rows.split(lengths), strict=True):
            self._add_one(fragment, own)

    def _add_one(self, fragment: Mapping[str, Any], logits: Tensor) -> None:
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
        without = (~((self._weights > 0) & self._weights.isfinite())).nonzero()[:, 0]
        if len(without) > 0:
            message = f"{len(without)} of {self._num_points} points of {self._where} are in no fragment with a finite "
            message += f"weight above 0, the first is {int(without[0])}: let split_scene yield fragments that cover "
            message += "them, or leave them out of the scene and bring them back by data_dict['inverse']"
            raise DataError(message)
        if int(self._visits.sum()) != self._expected_visits:
            message = f"a fragment of {self._where} has a point twice in its index, so one of its votes would be lost"
            raise DataError(f"{message}: let split_scene yield each point once a fragment (index.unique())")


def checked_fragment(fragment: Any, num_points: int, where: str) -> dict[str, Any]:
    """Return a fragment; refuse one without an index into the scene, or with weights that do not fit."""
    if not isinstance(fragment, dict):
        raise DataError(f"a fragment of {where} is {describe(fragment)}; split_scene must yield dicts with 'index'")
    index = checked_index("fragment['index']", fragment.get("index"), num_points, where)
    if fragment.get("weight") is not None:
        _check_weight(fragment["weight"], index, where)
    return fragment


def _check_weight(weight: Any, index: Tensor, where: str) -> None:
    is_weight = isinstance(weight, Tensor) and weight.shape == index.shape
    if not is_weight or not bool(((weight >= 0) & weight.isfinite()).all()):
        got = "NaN, infinite or below 0 at some points" if is_weight else describe(weight)
        message = f"fragment['weight'] of {where} is {got}; expected a tensor {tuple(index.shape)}"
        raise DataError(f"{message}, one weight for each point of its index, from 0 on")


def _check_lengths(fragments: Sequence[Mapping[str, Any]], lengths: Sequence[int], where: str) -> None:
    """Refuse clouds and indices of other lengths where their sums are the same, so that logits look as if they fitted.

    Other sums are no fault: `fragment_logits` may bring what was predicted for thinned points back to the index.
    """
    clouds = [find_cloud(fragment) for fragment in fragments]
    points = [length if cloud is None else len(cloud) for cloud, length in zip(clouds, lengths, strict=True)]
    if sum(points) == sum(lengths) and points != list(lengths):
        message = f"fragments of {where} have {listed(points)} points, and {listed(lengths)} in their index"
        raise DataError(f"{message}: let split_scene yield one row of the cloud for each point of the index")


def checked_index(name: str, index: Any, num_points: int, where: str) -> Tensor:
    """Return an index of points; refuse what is none, or lies outside of the scene (which waits for the device)."""
    is_index = isinstance(index, Tensor) and index.ndim == 1 and index.dtype == torch.long
    if not is_index or bool(((index < 0) | (index >= num_points)).any()):
        got = describe(index) if not is_index else f"numbers from {int(index.min())} to {int(index.max())}"
        message = f"{name} of {where} is {got}; expected a tensor (n,) of int64"
        raise DataError(f"{message}, the rows of its points among the {num_points} of the scene")
    return index


def checked_logits(logits: Any, rows: int, classes: int | None, where: str) -> Tensor:
    """Return the logits of a batch of fragments; refuse what has not one row a point, or other classes."""
    is_table = isinstance(logits, Tensor) and logits.ndim == 2 and len(logits) == rows  # noqa: PLR2004
    if not is_table or not 0 < logits.shape[1] == (classes or logits.shape[1]):
        form = f"({rows}, C), one row" if classes is None else f"({rows}, {classes}), as before in this scene, one row"
        message = f"the logits of fragments of {where} are {describe(logits)}; expected a tensor {form} a "
        raise ResultError(message + "point of the packed batch. Return them from test_step or fragment_logits")
    return logits
