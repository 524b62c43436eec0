"""Plain data: what YAML and JSON hold, and what a checkpoint may hold under ``weights_only``."""

import dataclasses
from argparse import Namespace
from collections.abc import Mapping
from pathlib import PurePath
from types import SimpleNamespace
from typing import Any

import numpy as np


def to_plain(value: Any) -> Any:
    """Turn a config object of any common kind into dicts, lists, numbers and strings.

    Known kinds: dict and its subclasses (EasyDict, ml_collections, yacs), OmegaConf, dataclasses, pydantic models,
    ``Namespace``, ``SimpleNamespace``, numpy scalars and arrays, paths. Anything else is returned as it is.
    """
    if _is_omegaconf(value):
        value = _resolve_omegaconf(value)
    if fields := _fields_of(value):
        return {str(key): to_plain(item) for key, item in fields.items()}
    if isinstance(value, Mapping):
        return {}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_plain(item) for item in value]
    return _plain_leaf(value)


def _fields_of(value: Any) -> Mapping | None:
    """Return what a config object holds by name, or None when it is not one."""
    if isinstance(value, Mapping):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Namespace | SimpleNamespace):
        return vars(value)
    if hasattr(type(value), "model_fields") and not isinstance(value, type):
        return value.model_dump()  # pyright: ignore[reportAttributeAccessIssue]  a pydantic model
    return None


def _plain_leaf(value: Any) -> Any:
    """Turn numpy values and paths into what YAML and JSON know."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return str(value) if isinstance(value, PurePath) else value


def _is_omegaconf(value: Any) -> bool:
    return type(value).__module__.startswith("omegaconf.")


def _resolve_omegaconf(value: Any) -> Any:
    """Resolve interpolations; the import is free, since the user's object has already loaded the library."""
    from omegaconf import OmegaConf  # pyright: ignore[reportMissingImports]

    return OmegaConf.to_container(value, resolve=True)
