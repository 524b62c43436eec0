"""Values of a user's state that a checkpoint holds in another form, as data, and gives back as they were."""

import datetime as dt
import random
import sys
from collections import deque
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch

from vision3d_engine.core.errors import CheckpointError

_KIND = "vision3d_engine.kind"
_METHODS = ("state_dict", "load_state_dict")


def has_state(part: Any) -> bool:
    """Tell whether an object can hand out its state and take it back."""
    return all(callable(getattr(part, name, None)) for name in _METHODS)


def encoded(value: Any) -> Any:
    """Return a nest with numpy arrays, enums, sets, deques, paths and times in a form that a checkpoint can hold.

    Everything else is left as it is, also what no checkpoint can hold.
    """
    for kind, (classes, write, _) in _FORMS.items():
        if isinstance(value, classes):
            written = write(value)
            return value if written is value else {_KIND: kind, "value": encoded(written)}
    if isinstance(value, Mapping):
        return {encoded_key(key): encoded(part) for key, part in value.items()}
    return type(value)(map(encoded, value)) if type(value) in {list, tuple} else value


def encoded_key(key: Any) -> Any:
    """Return the key of a dict: that of an enum is its value."""
    return key.value if isinstance(key, Enum) else key


def decoded(value: Any) -> Any:
    """Return a nest as it was before `encoded`.

    Raises:
        CheckpointError: for an enum whose class the script no longer has.
    """
    if isinstance(value, Mapping):
        if _KIND in value:
            return _FORMS[value[_KIND]][2](decoded(value["value"]))
        return {key: decoded(part) for key, part in value.items()}
    return type(value)(map(decoded, value)) if type(value) in {list, tuple} else value


def _array(value: np.ndarray) -> Any:
    try:
        return torch.from_numpy(value.copy())
    except TypeError:  # text, dates and the like
        return value


def _enum(value: Enum) -> dict[str, Any]:
    kind = type(value)
    return {"module": kind.__module__, "class": kind.__qualname__, "name": value.name}


def _enum_of(parts: Mapping[str, str]) -> Enum:
    """Return a member of an enum that the script has defined; nothing is imported for it."""
    found: Any = sys.modules.get(parts["module"])
    for name in parts["class"].split("."):
        found = getattr(found, name, None)
    if not (isinstance(found, type) and issubclass(found, Enum) and parts["name"] in found.__members__):
        what = f"{parts['module']}.{parts['class']}.{parts['name']}"
        message = f"a state of the checkpoint holds {what}, which this script does not have; define it before the run"
        raise CheckpointError(message)
    return found[parts["name"]]


# By name: the classes, how they are written, how they are read.
_FORMS: dict[str, tuple[Any, Callable[[Any], Any], Callable[[Any], Any]]] = {
    "array": (np.ndarray, _array, lambda value: value.numpy() if isinstance(value, torch.Tensor) else value),
    "enum": (Enum, _enum, _enum_of),
    "set": (set, list, set),
    "frozenset": (frozenset, list, frozenset),
    "deque": (deque, lambda value: [list(value), value.maxlen], lambda value: deque(*value)),
    "path": (PurePath, str, Path),
    "datetime": (dt.datetime, dt.datetime.isoformat, dt.datetime.fromisoformat),
    "date": (dt.date, dt.date.isoformat, dt.date.fromisoformat),
    "timedelta": (
        dt.timedelta,
        lambda value: [value.days, value.seconds, value.microseconds],
        lambda value: dt.timedelta(*value),
    ),
}


class GeneratorState:
    """A generator of torch, numpy or python as an object with a state.

    Args:
        generator: the generator.
    """

    def __init__(self, generator: Any) -> None:
        self.generator = generator

    def state_dict(self) -> dict[str, Any]:
        """Return where the generator stands."""
        generator = self.generator
        if isinstance(generator, torch.Generator):
            return {"state": generator.get_state()}
        if isinstance(generator, np.random.Generator):
            return {"state": generator.bit_generator.state}
        is_numpy = isinstance(generator, np.random.RandomState)
        return {"state": generator.get_state(legacy=False) if is_numpy else generator.getstate()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the generator stand where a state says."""
        generator, value = self.generator, state["state"]
        if isinstance(generator, np.random.Generator):
            generator.bit_generator.state = value
        elif isinstance(generator, torch.Generator | np.random.RandomState):
            generator.set_state(value)
        else:
            generator.setstate(value)


def with_state(part: Any) -> Any:
    """Return an object that hands out its state: a generator in a form that does, anything else as it is."""
    kinds = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
    return GeneratorState(part) if isinstance(part, kinds) else part
