"""What the results of a step weigh in means."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from vision3d_engine.core.errors import ResultError, did_you_mean


def weights_by(hook: Callable[..., Any], samples: int, data: Any, output: Any, results: Any) -> Any:
    """Return what the user's ``metric_weight`` says, or the number of samples where it says nothing."""
    said = hook(data, output, results)
    if isinstance(said, Mapping):
        if unknown := said.keys() - results.keys():
            _refuse_misspelt(unknown, results.keys() - said.keys())
        return dict.fromkeys(results, samples) | dict(said)
    return samples if said is None else said


def where_finite(weights: Any, loss: Any) -> Any:
    """Return weights that are zero where a loss is not finite; nothing is read from its device."""
    if not isinstance(loss, torch.Tensor):
        return weights
    is_finite = loss.detach().isfinite().reshape(())
    if isinstance(weights, Mapping):
        return {key: weight * is_finite for key, weight in weights.items()}
    return weights * is_finite


def with_further(results: dict[str, Any], weights: Any, further: Mapping[str, tuple[Any, Any]]) -> tuple[Any, Any]:
    """Return results and weights with further numbers, each with its own weight; a name of the user's stays theirs."""
    known = dict(weights) if isinstance(weights, Mapping) else dict.fromkeys(results, weights)
    numbers, own = ({key: pair[place] for key, pair in further.items()} for place in (0, 1))
    return numbers | results, own | known


def _refuse_misspelt(unknown: Iterable[Any], rest: Iterable[str]) -> None:
    """Refuse a key that is nearly one which the step returns; others may be of results that this batch has not.

    Raises:
        ResultError: naming both.
    """
    for key in unknown:
        if hint := did_you_mean(str(key), rest):
            message = f"metric_weight returned a weight for '{key}', which the step does not return{hint}"
            raise ResultError(message)
