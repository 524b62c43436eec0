"""YAML files and values, with numbers as in YAML 1.2, and where each key of a file stands."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vision3d_engine.core.errors import ConfigError, listed


def read_yaml(path: Path) -> tuple[dict[str, Any], dict[str, list[int]]]:
    """Return the values of a YAML file and the lines, counted from 1, of every dotted key.

    Raises:
        ConfigError: when it cannot be read, or holds no groups.
    """
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
        values = yaml.load(text, Loader=_loader()) or {}  # noqa: S506  a SafeLoader with YAML 1.2 floats
        lines = _lines(yaml.compose(text, Loader=_loader()))
    except OSError as error:
        message = f"cannot read the config '{path}': {error.strerror or error}"
        raise ConfigError(message) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        message = f"the config '{path}' is not valid YAML: {error}"
        raise ConfigError(message) from error
    if not isinstance(values, dict):
        message = f"the config '{path}' holds a {type(values).__name__}; expected groups of settings (trainer: ...)"
        raise ConfigError(message)
    return values, lines


def parse_value(text: str) -> Any:
    """Read one value as YAML 1.2 does: number, true/false, null, list or text."""
    import yaml

    try:
        return yaml.load(text, Loader=_loader())  # noqa: S506  a SafeLoader with YAML 1.2 floats
    except yaml.YAMLError:
        return text


def doubled(lines: dict[str, list[int]]) -> Iterator[str]:
    """Say which keys of a file are there more than once; YAML itself keeps the last without a word."""
    for dotted, numbers in lines.items():
        if len(numbers) > 1:
            where = f"in lines {listed(numbers)}"
            yield f"cfg.{dotted} is given {len(numbers)} times, {where}; expected once: merge them into one"


def _loader() -> Any:
    """Return a safe loader that reads ``1e-3`` as a number (YAML 1.2), where YAML 1.1 reads a string."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    pattern = re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", pattern, list("-+0123456789."))
    return Loader


def _lines(node: Any) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for dotted, line in _keys(node):
        found.setdefault(dotted, []).append(line)
    return found


def _keys(node: Any, prefix: str = "") -> Iterator[tuple[str, int]]:
    """Yield every dotted key below a node with its line; entries of lists are numbered, ``<<`` is no key."""
    children = getattr(node, "value", None)
    for number, child in enumerate(children if isinstance(children, list) else ()):
        key, value = child if isinstance(child, tuple) else (None, child)
        if key is None:
            yield from _keys(value, f"{prefix}{number}.")
        elif key.value != "<<":
            yield f"{prefix}{key.value}", key.start_mark.line + 1
            yield from _keys(value, f"{prefix}{key.value}.")
