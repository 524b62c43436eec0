"""Plain data: what YAML and JSON hold, and what a checkpoint may hold under ``weights_only``."""

import dataclasses
from argparse import Namespace
from collections import deque
from collections.abc import Mapping
from pathlib import PurePath
from types import SimpleNamespace
from typing import Any

import numpy as np

from vision3d_engine.core.tree import map_leaves, map_with_paths


def to_plain(value: Any) -> Any:
    """Turn a config object of any common kind into dicts, lists, numbers and strings.

    Known kinds: dict and its subclasses (EasyDict, ml_collections, yacs), OmegaConf, dataclasses, pydantic models,
    ``Namespace``, ``SimpleNamespace``, numpy scalars and arrays, paths. Anything else is returned as it is.
    """
    return map_with_paths(_plain, value)


def printable(value: Any) -> Any:
    """Return plain data with text in place of what YAML cannot hold (functions, tensors)."""
    return map_leaves(lambda leaf: leaf if isinstance(leaf, bool | int | float | str | None) else repr(leaf), value)


def _plain(_path: str, value: Any) -> Any:
    """Make one value, or the outside of a container, plain."""
    if type(value).__module__.startswith("omegaconf."):
        from omegaconf import OmegaConf  # pyright: ignore[reportMissingImports]  the user's object has loaded it

        value = OmegaConf.to_container(value, resolve=True)
    fields = _fields_of(value)
    if fields is not None:
        return {str(key): item for key, item in fields.items()}
    if isinstance(value, tuple | set | frozenset | deque):
        return list(value)
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return str(value) if isinstance(value, PurePath) else value


def _fields_of(value: Any) -> Mapping | None:
    """Return what a config object holds by name, or None when it is not one."""
    if isinstance(value, type):
        return None
    if isinstance(value, Mapping):
        return value
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Namespace | SimpleNamespace):
        return vars(value)
    return value.model_dump() if hasattr(type(value), "model_fields") else None  # a pydantic model
