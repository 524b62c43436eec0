"""From whatever the user calls a config to checked settings; and YAML plus dotted overrides for new scripts."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vision3d_engine.core import cli
from vision3d_engine.core.errors import ConfigError, did_you_mean, listed
from vision3d_engine.core.plain import to_plain

if TYPE_CHECKING:
    from vision3d_engine.core.settings import Settings

_STRICT_SECTIONS = ("exp", "trainer", "scheduler")


class Config(dict):
    """A dict whose keys are attributes too, as `load_config` returns it: ``cfg.trainer.max_epoch``."""

    def __init__(self, values: Mapping[str, Any] | None = None) -> None:
        super().__init__({key: _as_config(value) for key, value in (values or {}).items()})

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            message = f"the config has no key '{name}'{did_you_mean(name, self)} (keys: {listed(self)})"
            raise AttributeError(message) from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value


def _as_config(value: Any) -> Any:
    if isinstance(value, Mapping):
        return Config(value)
    return [_as_config(item) for item in value] if isinstance(value, list) else value


# ------------------------------------------------------------------------------------------- checked settings


def read_settings(
    cfg: Any, overrides: Mapping[str, Any] | None = None, exp_overrides: Mapping[str, Any] | None = None
) -> tuple["Settings", list[str]]:
    """Check ``exp.*`` and ``trainer.*`` of any config object; return the settings and warnings about near misses.

    Args:
        cfg: EasyDict, OmegaConf, dataclass, Namespace, pydantic object, dict or None (all defaults).
        overrides: values that win over ``trainer.*``, such as command line flags.
        exp_overrides: values that win over ``exp.*``.

    Raises:
        ConfigError: with every mistake at once: dotted key, what was got, what is allowed, the nearest known key.
            An unknown key is an error in a plain dict and in what `load_config` made; in an object of another kind,
            where scripts keep keys of their own, a near miss is only a warning.
    """
    from vision3d_engine.core.settings import Settings

    sections = _sections(cfg)
    unknown = [line for name in ("exp", "trainer") for line in _unknown_keys(name, sections[name])]
    strict = cfg is None or type(cfg) in {dict, Config}
    exp, wrong_exp = _validate("exp", {**sections["exp"], **(exp_overrides or {})})
    trainer, wrong_trainer = _validate("trainer", {**sections["trainer"], **(overrides or {})})
    _raise_if_any([*(unknown if strict else []), *wrong_exp, *wrong_trainer])
    return Settings(exp=exp, trainer=trainer), [] if strict else [line for line in unknown if "did you mean" in line]


def read_section(cfg: Any, name: str) -> Any:
    """Check one section (``"optimizer"``, ``"scheduler"``) of any config object and return its settings.

    Raises:
        ConfigError: when a value is missing or not allowed.
    """
    values, mistakes = _validate(name, _sections(cfg)[name])
    _raise_if_any(mistakes)
    return values


def _known() -> dict[str, Any]:
    """Return the models of all sections by name; loaded on use, as pydantic is slow to load."""
    from vision3d_engine.core.settings import SECTIONS

    return SECTIONS


def _sections(cfg: Any) -> dict[str, dict[str, Any]]:
    """Return the plain sections that the engine knows; a config without one has an empty one."""
    plain = {} if cfg is None else to_plain(cfg)
    if not isinstance(plain, dict):
        message = f"cfg is a {type(cfg).__name__}; expected a dict, EasyDict, OmegaConf, dataclass, Namespace or None"
        raise ConfigError(message)
    sections = {name: plain.get(name) or {} for name in _known()}
    wrong = [name for name, section in sections.items() if not isinstance(section, dict)]
    _raise_if_any([f"cfg.{name} is {sections[name]!r}; expected a group of settings" for name in wrong])
    return sections


def _unknown_keys(name: str, section: Mapping[str, Any]) -> list[str]:
    known = _known()[name].model_fields
    strange = [key for key in section if key not in known]
    return [f"cfg.{name}.{key} is unknown{did_you_mean(key, known, similarity=0.75)}" for key in strange]


def _validate(name: str, values: Mapping[str, Any]) -> tuple[Any, list[str]]:
    """Return the settings of a section, or None and one line per mistake."""
    from pydantic import ValidationError

    try:
        return _known()[name].model_validate(values), []
    except ValidationError as error:
        return None, [_mistake(name, details) for details in error.errors()]


def _mistake(name: str, details: Mapping[str, Any]) -> str:
    """Say what is wrong with one value: dotted key, what was got, what is allowed, what the key means."""
    key = details["loc"][0]
    meaning = _known()[name].model_fields[key].description
    if details["type"] == "missing":
        return f"cfg.{name}.{key} is missing: {meaning}"
    allowed = details["msg"].replace("Input should be", "it must be")
    return f"cfg.{name}.{key} is {details['input']!r}; {allowed}. {meaning}"


def _raise_if_any(mistakes: Sequence[str]) -> None:
    if len(mistakes) == 1:
        raise ConfigError(mistakes[0])
    if mistakes:
        raise ConfigError(f"{len(mistakes)} settings are wrong:\n" + "\n".join(f"  {line}" for line in mistakes))


# --------------------------------------------------------------------------------------- YAML and overrides


def load_config(path: str | Path | None = None, argv: Sequence[str] | None = None) -> Config:
    """Read a YAML file, apply dotted overrides such as ``--trainer.max_epoch 3`` and check all known sections.

    Numbers follow YAML 1.2: ``1e-3`` is a number. Words of ``argv`` that are not dotted (``--resume``) are left to
    the trainer's own flags.

    Args:
        path: the YAML file; None starts from nothing.
        argv: command line words without the program's name (default: those of the running script).

    Raises:
        ConfigError: with every mistake at once, and the line of the file for an unknown key.
    """
    values, lines = _read_yaml(Path(path)) if path is not None else ({}, {})
    words = cli.own_argv() if argv is None else argv
    mistakes = [line for dotted, text in cli.take_overrides(words) if (line := _override(values, dotted, text))]
    _raise_if_any([_with_line(line, lines, path) for line in [*mistakes, *_mistakes_in(values)]])
    cli.get_parser().epilog = "settings:\n" + "\n".join(_help_lines(values))
    return Config(values)


def _read_yaml(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """Return the values of a YAML file and the line number of every dotted key."""
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
        values = yaml.load(text, Loader=_yaml_loader()) or {}  # noqa: S506  a SafeLoader with YAML 1.2 floats
        lines = dict(_key_lines(yaml.compose(text, Loader=_yaml_loader())))
    except OSError as error:
        message = f"cannot read the config '{path}': {error.strerror or error}"
        raise ConfigError(message) from error
    except yaml.YAMLError as error:
        message = f"the config '{path}' is not valid YAML: {error}"
        raise ConfigError(message) from error
    if not isinstance(values, dict):
        message = f"the config '{path}' holds a {type(values).__name__}; expected groups of settings (trainer: ...)"
        raise ConfigError(message)
    return values, lines


def _yaml_loader() -> Any:
    """Return a safe loader that reads ``1e-3`` as a number (YAML 1.2), where YAML 1.1 reads a string."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    pattern = re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", pattern, list("-+0123456789."))
    return Loader


def _parse_value(text: str) -> Any:
    """Read one value as YAML 1.2 does: number, true/false, null, list or text."""
    import yaml

    try:
        return yaml.load(text, Loader=_yaml_loader())  # noqa: S506  a SafeLoader with YAML 1.2 floats
    except yaml.YAMLError:
        return text


def _key_lines(node: Any, prefix: str = "") -> Iterator[tuple[str, int]]:
    """Yield every dotted key of a YAML document with its line, counted from 1."""
    for pair in getattr(node, "value", None) or ():
        if isinstance(pair, tuple):
            dotted = f"{prefix}{pair[0].value}"
            yield dotted, pair[0].start_mark.line + 1
            yield from _key_lines(pair[1], f"{dotted}.")


def _override(values: dict[str, Any], dotted: str, text: str) -> str | None:
    """Set one dotted key; return what is wrong with it, if anything."""
    section, *path, last = dotted.replace("-", "_").split(".")
    group = values.setdefault(section, {}) if section in _known() else values.get(section)
    for part in path:
        group = group.get(part) if isinstance(group, dict) else None
    if not isinstance(group, dict) or not (section in _known() or last in group):
        return f"--{dotted} is unknown{did_you_mean(dotted, _dotted_keys(values))}"
    group[last] = _parse_value(text)
    return None


def _dotted_keys(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    """List every dotted key of a nest."""
    keys = []
    for key, value in values.items():
        keys += _dotted_keys(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [f"{prefix}{key}"]
    return keys


def _mistakes_in(values: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with the sections that are there."""
    sections = _sections(values)
    for name in [name for name in sections if name in values]:
        yield from _unknown_keys(name, sections[name]) if name in _STRICT_SECTIONS else ()
        yield from _validate(name, sections[name])[1]


def _with_line(mistake: str, lines: Mapping[str, int], path: str | Path | None) -> str:
    """Add file and line to a mistake that came from the file."""
    found = re.match(r"cfg\.([\w.]+)", mistake)
    line = lines.get(found.group(1)) if found else None
    return f"{mistake} ({path}, line {line})" if line else mistake


def _help_lines(values: Mapping[str, Any]) -> Iterator[str]:
    """Yield a help line for every setting that can be overridden, with its present value."""
    sections = _sections(values)
    for name in _STRICT_SECTIONS:
        for key, field in _known()[name].model_fields.items():
            yield f"  --{name}.{key} {sections[name].get(key, field.default)}\n        {field.description}"
    yield from (f"  --{key}" for key in _dotted_keys(values) if key.split(".")[0] not in sections)
