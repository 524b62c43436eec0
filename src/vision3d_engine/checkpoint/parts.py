"""Put loaded states into models, optimizers and schedules, or say exactly why they do not fit."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vision3d_engine.checkpoint.files import find_checkpoint, read_checkpoint
from vision3d_engine.core.errors import CheckpointError
from vision3d_engine.distributed.wrap import clean_key, unwrap_model

_MAX_LISTED = 8


def model_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return a model's state under the names of the user's own module, whatever wraps it or its children."""
    return {_own_name(key): value for key, value in unwrap_model(model).state_dict().items()}


def _own_name(key: str) -> str:
    """Return a parameter's name without the ``_orig_mod`` that ``torch.compile`` puts into it."""
    return ".".join(part for part in key.split(".") if part != "_orig_mod")


def load_model(model: nn.Module, state: Mapping[str, Any], source: str, strict: bool = True) -> list[str]:
    """Load a model's weights and return what did not fit; nothing is loaded when strict and something does not fit.

    Prefixes of wrappers (``module.``, ``_orig_mod.``) in the file are ignored when the model does not have them.

    Raises:
        CheckpointError: when strict, with missing and unexpected keys and differing shapes in one report.
    """
    own = unwrap_model(model)
    names = {_own_name(key): key for key in own.state_dict()}
    found = {_own_name(key): value for key, value in state.items()}
    if not found.keys() & names.keys():
        found = {clean_key(key): value for key, value in found.items()}
    report = _misfits(found, model_state(own))
    if report and strict:
        raise CheckpointError(f"part 'model' of '{source}' does not fit: " + "; ".join(report))
    own.load_state_dict(
        {names[key]: value for key, value in found.items() if _fits(key, value, names, own)}, strict=False
    )
    return report


def load_weights(model: nn.Module, name: str | Path, folder: Path) -> tuple[Path, dict[str, Any]]:
    """Load the weights of a file, strictly, whether under the key ``model`` or bare; return its path and metadata.

    Args:
        model: what to load into.
        name: an absolute path, one from where the command runs, or a name in the folder.
        folder: the checkpoint folder.

    Raises:
        CheckpointError: when there is no such file, it cannot be read, or it does not fit.
    """
    path = find_checkpoint(name, folder)
    state = read_checkpoint(path)
    load_model(model, state.get("model", state), str(path))
    return path, dict(state.get("metadata", {}))


def _fits(key: str, value: Any, names: Mapping[str, str], model: nn.Module) -> bool:
    """Tell whether a loaded value has a place of its shape in the model."""
    return key in names and _shape(value) == _shape(model.state_dict()[names[key]])


def _misfits(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Return one line each for missing keys, unexpected keys and differing shapes."""
    missing = [f"'{key}' {_shape(value)}" for key, value in wanted.items() if key not in found]
    unexpected = [f"'{key}' {_shape(value)}" for key, value in found.items() if key not in wanted]
    common = [key for key in wanted if key in found and _shape(found[key]) != _shape(wanted[key])]
    differing = [f"'{key}' is {_shape(found[key])}, the model has {_shape(wanted[key])}" for key in common]
    kinds = (("missing", missing), ("unexpected", unexpected), ("shape differs:", differing))
    return [f"{kind} {_shortened(lines)}" for kind, lines in kinds if lines]


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, torch.Tensor) else type(value).__name__


def _shortened(lines: list[str]) -> str:
    more = f" and {len(lines) - _MAX_LISTED} more" if len(lines) > _MAX_LISTED else ""
    return ", ".join(lines[:_MAX_LISTED]) + more


def load_part(part: Any, state: Any, name: str, source: str) -> None:
    """Load the state of an optimizer, schedule or the like.

    Raises:
        CheckpointError: when the part refuses it, with the part's own reason.
    """
    try:
        part.load_state_dict(state)
    except (ValueError, KeyError, RuntimeError, TypeError, AttributeError) as error:
        message = (
            f"part '{name}' of '{source}' does not fit: {error}. Register the same {name} as the run that wrote it, "
            "or start from the weights alone with --checkpoint instead of --resume"
        )
        raise CheckpointError(message) from error
