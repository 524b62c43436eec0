"""What the results of a step weigh in means."""

from collections.abc import Callable, Mapping
from typing import Any


def weights_by(hook: Callable[..., Any], samples: int, data: Any, output: Any, results: Any) -> Any:
    """Return what the user's ``metric_weight`` says, or the number of samples where it says nothing."""
    said = hook(data, output, results)
    if isinstance(said, Mapping):
        return dict.fromkeys(results, samples) | dict(said)
    return samples if said is None else said


def with_further(results: dict[str, Any], weights: Any, further: Mapping[str, tuple[Any, Any]]) -> tuple[Any, Any]:
    """Return results and weights with further numbers, each with its own weight; a name of the user's stays theirs."""
    known = dict(weights) if isinstance(weights, Mapping) else dict.fromkeys(results, weights)
    numbers, own = ({key: pair[place] for key, pair in further.items()} for place in (0, 1))
    return numbers | results, own | known
