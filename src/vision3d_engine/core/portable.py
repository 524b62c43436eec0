"""Values of a user's state that a checkpoint holds in another form, as data, and gives back as they were."""

import datetime as dt
import random
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Mapping
from enum import Enum, Flag
from pathlib import Path, PosixPath, PurePosixPath, PureWindowsPath, WindowsPath
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import numpy as np
import torch

from vision3d_engine.core.errors import CheckpointError

_KIND = "vision3d_engine.kind"
_METHODS = ("state_dict", "load_state_dict")
_KEYS = {str, int, float, bool, type(None)}
_PLAIN_TYPES: tuple[Any, ...] = (bool, int, float, complex, str, bytes)
_TORCH_TYPES = (torch.Tensor, torch.Size, torch.dtype, torch.device)
_FACTORIES: dict[str, Any] = {kind.__name__: kind for kind in (int, float, str, list, dict, set)} | {"None": None}


def has_state(part: Any) -> bool:
    """Tell whether an object can hand out its state and take it back."""
    return all(callable(getattr(part, name, None)) for name in _METHODS)


def encoded(value: Any, path: str = "") -> Any:
    """Return a nest as data that a checkpoint can hold, from which `decoded` makes it again, of the same classes.

    Args:
        value: the nest.
        path: the way to it, for messages.

    Raises:
        CheckpointError: for what would not come back as it was, naming its key path.
    """
    if (form := _form_of(value)) is not None:
        return {_KIND: form, "value": encoded(_written(form, value, path), path)}
    if type(value) in {dict, OrderedDict}:
        return type(value)((key, encoded(part, f"{path}[{key!r}]")) for key, part in value.items())
    if type(value) in {list, tuple}:
        return type(value)(encoded(part, f"{path}[{index}]") for index, part in enumerate(value))
    return plain_leaf(value, path)


def decoded(value: Any) -> Any:
    """Return a nest as it was before `encoded`.

    Raises:
        CheckpointError: for an enum or a named tuple whose class the script no longer has.
    """
    if isinstance(value, Mapping):
        if _KIND in value:
            return _FORMS[value[_KIND]].read(decoded(value["value"]))
        return type(value)((key, decoded(part)) for key, part in value.items())  # pyright: ignore[reportCallIssue]
    return type(value)(map(decoded, value)) if type(value) in {list, tuple} else value


def plain_leaf(value: Any, path: str) -> Any:
    """Return a value that is no container as what ``torch.load(weights_only=True)`` accepts.

    Raises:
        CheckpointError: for a value that would not load, naming its key path.
    """
    if isinstance(value, torch.Tensor) and value.is_nested:
        raise refused(value, path, "save what it is made of, value.unbind()")
    if value is None or isinstance(value, _TORCH_TYPES):
        return value
    for kind in _PLAIN_TYPES:
        if isinstance(value, kind):
            return kind(value)  # a subclass (torch.__version__) would not load
    raise refused(value, path)


def plain_array(value: np.ndarray, path: str) -> torch.Tensor:
    """Return a copy of an array as a tensor of the same layout.

    Raises:
        CheckpointError: when torch has no such numbers, naming the key path.
    """
    return _written("array", value, path)


def refused(value: Any, path: str, reason: str = "loading it would run code") -> CheckpointError:
    """Return the error for a value that a checkpoint cannot hold."""
    message = f"state{path} is {type(value).__module__}.{type(value).__qualname__}, which a checkpoint cannot hold: "
    return CheckpointError(message + f"{reason}. Return tensors, numbers, text, lists and dicts from state_dict()")


class _Form(NamedTuple):
    """How values of a kind are written, as data and values that have forms themselves, and how they are read."""

    write: Callable[[Any], Any]
    read: Callable[[Any], Any]


def _form_of(value: Any) -> str | None:
    """Return the name of the form that a value is written in; None where it is written as it is."""
    kind = type(value)
    if kind in {dict, OrderedDict}:
        return None if _KIND not in value and all(type(key) in _KEYS for key in value) else kind.__name__
    if kind in _CLASSES:
        return _CLASSES[kind]
    return next((name for name, is_one in _FAMILIES.items() if is_one(value)), None)


def _written(form: str, value: Any, path: str) -> Any:
    """Return what stands for a value in a form, or the error of the family where nothing does."""
    try:
        return _FORMS[form].write(value)
    except ValueError as error:
        raise refused(value, path, str(error)) from None


def _tensor(value: Any) -> torch.Tensor:
    """Write an array or a number of numpy."""
    try:
        return torch.from_numpy(np.array(value, order="K"))
    except (TypeError, ValueError) as error:  # text, dates, long doubles, another order of bytes
        raise ValueError(f"torch says: {error}") from None


# ------------------------------------------------------------------------------------------- classes of scripts


def _named(value: Any) -> dict[str, str]:
    """Return where the class of a value is found again; ValueError where it is not."""
    kind = type(value)
    if _class_of(names := {"module": kind.__module__, "class": kind.__qualname__}) is not kind:
        raise ValueError("a resumed run would not find its class; define it in a script, outside functions")
    return names


def _class_of(names: Mapping[str, str]) -> Any:
    """Return what the script has defined under a name, or None; nothing is imported for it."""
    found: Any = sys.modules.get(names["module"])
    for name in names["class"].split("."):
        found = getattr(found, name, None)
    return found if isinstance(found, type) else None


def _gone(parts: Mapping[str, Any], member: str) -> CheckpointError:
    what = f"{parts['module']}.{parts['class']}{member}"
    return CheckpointError(
        f"a state of the checkpoint holds {what}, which this script does not have; define it before the run"
    )


def _enum(value: Enum) -> dict[str, Any]:
    """Write a member by its name; flags, which need not have one, by value."""
    return _named(value) | ({"value": value.value} if isinstance(value, Flag) else {"name": value.name})


def _enum_of(parts: Mapping[str, Any]) -> Enum:
    kind = _class_of(parts)
    try:
        if kind is not None and issubclass(kind, Enum):
            return kind(parts["value"]) if "value" in parts else kind[parts["name"]]
    except (KeyError, ValueError):
        pass
    raise _gone(parts, f"({parts['value']})" if "value" in parts else f".{parts['name']}")


def _is_named_tuple(value: Any) -> bool:
    return isinstance(value, tuple) and hasattr(value, "_fields")


def _named_tuple_of(parts: Mapping[str, Any]) -> Any:
    kind, fields = _class_of(parts), parts["fields"]
    if kind is None or not issubclass(kind, tuple) or getattr(kind, "_fields", None) != tuple(fields):
        raise _gone(parts, f"({', '.join(fields)})")
    return kind._make(fields.values())  # pyright: ignore[reportAttributeAccessIssue]


# ------------------------------------------------------------------------------------------- dicts


def _pairs(value: Mapping[Any, Any]) -> list[Any]:
    return [[key, part] for key, part in value.items()]


def _default_dict(value: defaultdict[Any, Any]) -> list[Any]:
    names = [name for name, factory in _FACTORIES.items() if factory is value.default_factory]
    if not names:
        raise ValueError(f"its factory is {value.default_factory!r}, and may be one of {', '.join(_FACTORIES)}")
    return [*names, _pairs(value)]


# ------------------------------------------------------------------------------------------- times


def _time_of(parts: Any) -> dt.datetime:
    """Read a time; files of before hold text without zone names."""
    if isinstance(parts, str):
        return dt.datetime.fromisoformat(parts)
    text, fold, zone = parts
    return dt.datetime.fromisoformat(text).replace(fold=fold, tzinfo=zone)


def _offset(value: dt.timezone) -> list[Any]:
    offset, name = value.utcoffset(None), value.tzname(None)
    return [offset] if dt.timezone(offset).tzname(None) == name else [offset, name]


def _zone(value: ZoneInfo) -> str:
    if value.key is None:
        raise ValueError("it has no key")
    return value.key


_FORMS = {
    "array": _Form(_tensor, lambda value: value.numpy() if isinstance(value, torch.Tensor) else value),
    "scalar": _Form(_tensor, lambda value: value.numpy()[()]),
    "text": _Form(str, np.str_),
    "enum": _Form(_enum, _enum_of),
    "namedtuple": _Form(lambda value: _named(value) | {"fields": value._asdict()}, _named_tuple_of),
    "dict": _Form(_pairs, dict),
    "OrderedDict": _Form(_pairs, OrderedDict),
    "Counter": _Form(_pairs, lambda pairs: Counter(dict(pairs))),
    "defaultdict": _Form(_default_dict, lambda parts: defaultdict(_FACTORIES[parts[0]], parts[1])),
    "set": _Form(list, set),
    "frozenset": _Form(list, frozenset),
    "deque": _Form(lambda value: [list(value), value.maxlen], lambda value: deque(*value)),
    "path": _Form(str, Path),
    "posixpath": _Form(str, PurePosixPath),
    "windowspath": _Form(str, PureWindowsPath),
    "datetime": _Form(lambda value: [value.replace(tzinfo=None).isoformat(), value.fold, value.tzinfo], _time_of),
    "timezone": _Form(_offset, lambda parts: dt.timezone(*parts)),
    "zone": _Form(_zone, ZoneInfo),
    "date": _Form(dt.date.isoformat, dt.date.fromisoformat),
    "timedelta": _Form(
        lambda value: [value.days, value.seconds, value.microseconds], lambda value: dt.timedelta(*value)
    ),
}
# Of these classes themselves: one derived from them would come back as another one.
_CLASSES: dict[type, str] = {
    np.ndarray: "array",
    np.str_: "text",
    set: "set",
    frozenset: "frozenset",
    deque: "deque",
    Counter: "Counter",
    defaultdict: "defaultdict",
    PosixPath: "path",
    WindowsPath: "path",
    PurePosixPath: "posixpath",
    PureWindowsPath: "windowspath",
    dt.datetime: "datetime",
    dt.date: "date",
    dt.timezone: "timezone",
    ZoneInfo: "zone",
    dt.timedelta: "timedelta",
}
_FAMILIES: dict[str, Callable[[Any], bool]] = {
    "enum": lambda value: isinstance(value, Enum),
    "scalar": lambda value: isinstance(value, np.generic),
    "namedtuple": _is_named_tuple,
}


def add_class(kind: type, name: str, write: Callable[[Any], Any], read: Callable[[Any], Any]) -> None:
    """Let states hold a class of the engine's own, which its module says here.

    Args:
        kind: the class.
        name: what it is called in files.
        write: returns a value as data, which may be of any class that states can hold.
        read: makes it again of that.
    """
    _FORMS[name], _CLASSES[kind] = _Form(write, read), name


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
