"""What the results of a step weigh in means."""

from collections.abc import Callable, Mapping
from typing import Any


def weights_by(hook: Callable[..., Any], samples: int, data: Any, output: Any, results: Any) -> Any:
    """Return what the user's ``metric_weight`` says, or the number of samples where it says nothing."""
    said = hook(data, output, results)
    if isinstance(said, Mapping):
        return dict.fromkeys(results, samples) | dict(said)
    return samples if said is None else said
