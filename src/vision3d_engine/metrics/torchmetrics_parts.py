"""The metrics of torchmetrics that are in one another, and how those of several processes are merged part by part."""

import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from vision3d_engine.core.errors import ResultError


def is_of_torchmetrics(metric: Any) -> bool:
    """Tell whether an object is a metric or a collection of torchmetrics, which is not imported for that."""
    library = _torchmetrics()
    return library is not None and isinstance(metric, library.Metric | library.MetricCollection)


def all_parts(metric: Any) -> list[Any]:
    """Return all metrics within one, and itself if it is no collection."""
    return [module for module in metric.modules() if isinstance(module, _torchmetrics().Metric)]


def merge(metric: Any, other: Any) -> None:
    """Take in another metric, in whose lists this one's samples come behind: torchmetrics puts what comes in first.

    Raises:
        ResultError: for states that are means over processes, and not the same on both.
    """
    for own, part in zip(_with_state(metric), _with_state(other), strict=True):
        _merge_part(own, part)


def unmerged(metric: Any) -> list[str]:
    """Return the parts of a metric that cannot be merged, each with its reason."""
    parts = _with_state(metric)
    if not parts:
        return [f"{type(metric).__name__} (neither it nor a metric that is its attribute has one by add_state)"]
    return [f"{type(part).__name__} ({reason})" for part in parts if (reason := _why_unmerged(part))]


def _torchmetrics() -> Any:
    """Return torchmetrics, if the script has imported it."""
    return sys.modules.get("torchmetrics")


def _with_state(metric: Any) -> list[Any]:
    """Return the parts of a metric that are merged, each once, and each of a collection with a state of its own."""
    return list({id(part): part for part in _merging(metric)}.values())  # == of metrics makes another metric


def _merging(module: Any) -> Iterator[Any]:
    """Yield the metrics with states from the outside in; one with a `merge_state` of its own cares for its parts."""
    library = _torchmetrics()
    if isinstance(module, library.Metric):
        if _merges_itself(module):
            yield module
            return
        if module.metric_state.keys() & vars(module).keys():  # ClasswiseWrapper shows those of its metric as well
            yield module
    is_many = isinstance(module, library.MetricCollection)
    for child in module.values(copy_state=True) if is_many else module.children():
        yield from _merging(child)


def _merges_itself(part: Any) -> bool:
    return type(part).merge_state is not _torchmetrics().Metric.merge_state


def _why_unmerged(part: Any) -> str:
    """Return why torchmetrics has no way to merge a metric, or one that says nothing wrong; empty if it has."""
    if _merges_itself(part):
        return ""
    for attribute in ("full_state_update", "dist_sync_on_step"):
        if getattr(part, attribute) is not False:
            return f"its {attribute} is not False"
    known = {getattr(_torchmetrics().utilities, f"dim_zero_{each}") for each in ("sum", "mean", "max", "min", "cat")}
    reductions = _reductions(part)
    for name, state in part.metric_state.items():
        if reductions[name] not in (known if isinstance(state, torch.Tensor) else known | {None}):
            return f"its state '{name}' has a dist_reduce_fx that is none of sum, mean, max, min and cat"
    return ""


def _merge_part(own: Any, part: Any) -> None:
    """Merge one part; a mean over processes is what they have in common, as a setting is (``data_range`` of PSNR).

    Any other mean would need to know what it weighs on each process, which is not known.
    """
    means = [] if _merges_itself(own) else _means(own)
    common = {name: getattr(own, name) for name in means}
    for name, value in common.items():
        if not torch.equal(value, getattr(part, name)):
            raise ResultError(_UNEQUAL.format(type(own).__name__, name, getattr(part, name).tolist(), value.tolist()))
    own.merge_state(part)
    for name, value in common.items():
        setattr(own, name, value)


def _means(part: Any) -> list[str]:
    mean = _torchmetrics().utilities.dim_zero_mean
    return [name for name, reduction in _reductions(part).items() if reduction is mean]


def _reductions(part: Any) -> Mapping[str, Any]:
    """Return how each state is reduced over processes."""
    return part._reductions  # noqa: SLF001  what add_state was told is kept nowhere else


_UNEQUAL = (
    "{} cannot be merged over processes: its state '{}' has dist_reduce_fx='mean' and is {} on one and {} on another, "
    "of which no mean is that of all samples; keep a sum and a count with dist_reduce_fx='sum', and divide in compute()"
)
