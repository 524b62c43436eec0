"""Put loaded states into optimizers, schedules and the like, or say exactly why they do not fit."""

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn.parameter import is_lazy

from vision3d_engine.core.errors import CheckpointError, listed, shortened
from vision3d_engine.core.named_parts import NamedParts
from vision3d_engine.distributed.parallel.shards import is_sharded, like


def load_part(part: Any, state: Any, name: str, source: str) -> None:
    """Load the state of an optimizer, schedule or the like.

    Raises:
        CheckpointError: when the part refuses it, with the part's own reason.
    """
    if isinstance(part, NamedParts):
        _load_parts(part.parts, state, name, source)
        return
    try:
        part.load_state_dict(_under_own_names(part, _spread(part, state)))
    except (ValueError, KeyError, RuntimeError, TypeError, AttributeError) as error:
        message = (
            f"part '{name}' of '{source}' does not fit: {error}. Register the same {name} as the run that wrote it "
            "(what a later epoch has added to it: in before_load), or start from the weights alone with --checkpoint "
            "instead of --resume"
        )
        raise CheckpointError(message) from error


def _load_parts(parts: Mapping[str, Any], state: Any, name: str, source: str) -> None:
    """Load what is registered by name, one after the other.

    Raises:
        CheckpointError: when the file and the script have other names, or one does not fit.
    """
    found = list(state) if isinstance(state, Mapping) else [type(state).__name__]
    if sorted(parts) != sorted(map(str, found)):
        message = (
            f"part '{name}' of '{source}' has {shortened(found)}, but the script has registered "
            f"{shortened(list(parts))}: register the same ones under the same names"
        )
        raise CheckpointError(message)
    for key, part in parts.items():
        load_part(part, state[key], f"{name} '{key}'", source)


def _under_own_names(part: Any, state: Any) -> Any:
    """Return an optimizer's state whose groups have the names of the script; torch would take those of the file.

    Raises:
        ValueError: when the groups are the same ones in another order, since torch matches them by their places.
    """
    if not isinstance(part, torch.optim.Optimizer) or "param_groups" not in state:
        return state
    saved = state["param_groups"]
    own, then = ([group.get("name") for group in groups] for groups in (part.param_groups, saved))
    if own != then and sorted(map(str, own)) == sorted(map(str, then)):
        message = (
            f"its parameter groups are in the order {listed(then)}, those of the script in the order {listed(own)}"
        )
        raise ValueError(message)
    names = [{} if name is None else {"name": name} for name in own]
    plain = [{key: value for key, value in group.items() if key != "name"} for group in saved]
    named = [group | name for group, name in zip(plain, names, strict=False)]
    return {**state, "param_groups": [*named, *saved[len(named) :]]}


def _spread(part: Any, state: Any) -> Any:
    """Return an optimizer's state with whole tensors spread as the parameters are that they belong to."""
    if not isinstance(part, torch.optim.Optimizer) or not isinstance(state.get("state"), Mapping):
        return state
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    parameters = dict(zip(numbers, (each for group in part.param_groups for each in group["params"]), strict=False))
    values = {number: _spread_like(values, parameters.get(number)) for number, values in state["state"].items()}
    return {**state, "state": values}


def _spread_like(values: Mapping[str, Any], parameter: Any) -> dict[str, Any]:
    fits = {name for name, value in values.items() if _has_shape_of(value, parameter)}
    return {
        name: _laid_out(like(value, parameter), parameter) if name in fits else value for name, value in values.items()
    }


def _has_shape_of(value: Any, parameter: Any) -> bool:
    both = isinstance(value, torch.Tensor) and isinstance(parameter, torch.Tensor)
    return both and not is_lazy(parameter) and value.shape == parameter.shape


def _laid_out(value: Any, parameter: Any) -> Any:
    """Return a tensor in the layout of its parameter, since fused optimizers walk through both alike."""
    if not isinstance(value, torch.Tensor) or value.layout != torch.strided or is_sharded(value):
        return value
    layout = torch.empty_like(parameter, device="meta").stride()
    if value.stride() == layout:
        return value
    return torch.empty_strided(value.shape, layout, dtype=value.dtype, device=value.device).copy_(value)
