"""From whatever the user calls a config to checked settings; and YAML plus dotted overrides for new scripts."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from vision3d_engine.core import cli
from vision3d_engine.core.errors import ConfigError, did_you_mean, listed, shortened
from vision3d_engine.core.plain import to_plain
from vision3d_engine.core.yaml_files import doubled, parse_value, read_yaml

if TYPE_CHECKING:
    from vision3d_engine.core.settings import Settings

_ENGINE_SECTIONS = ("exp", "trainer")
_STRICT_SECTIONS = (*_ENGINE_SECTIONS, "scheduler")
_UNREAD = (
    "{} on the command line sets nothing, since this script makes its config without it; expected is a config from "
    "load_config(), which reads such words, or ignore_command_line() where a parser of the script's own does"
)


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

    plain, read = _plain(cfg), ("exp", "trainer")
    sections = _sections(plain)
    unknown = [*_misspelt(plain, read), *(line for name in read for line in _unknown_keys(name, sections[name]))]
    exp, wrong_exp = _validate("exp", {**sections["exp"], **(exp_overrides or {})})
    trainer, wrong_trainer = _validate("trainer", {**sections["trainer"], **(overrides or {})})
    _raise_if_any([*(unknown if _is_strict(cfg) else []), *wrong_exp, *wrong_trainer])
    return Settings(exp=exp, trainer=trainer), [] if _is_strict(cfg) else _near_misses(unknown)


def read_section(cfg: Any, name: str) -> Any:
    """Check one section (``"optimizer"``, ``"scheduler"``) of any config object and return its settings.

    Raises:
        ConfigError: when a value is missing or not allowed, a key unknown, or only a section of nearly this name there.
            In an object in which scripts keep keys of their own, an unknown key is one that is nearly a known one.
    """
    plain = _plain(cfg)
    section = _sections(plain)[name]
    unknown = list(_unknown_keys(name, section)) if name in _STRICT_SECTIONS else []
    values, mistakes = _validate(name, section)
    unknown = unknown if _is_strict(cfg) else _near_misses(unknown)
    _raise_if_any([*_misspelt(plain, [name]), *unknown, *mistakes])
    return values


def _is_strict(cfg: Any) -> bool:
    """Tell whether a config is of a kind in which the engine's sections hold the engine's keys alone."""
    return cfg is None or type(cfg) in {dict, Config}


def _near_misses(unknown: Iterable[str]) -> list[str]:
    return [line for line in unknown if "did you mean" in line]


def _known() -> dict[str, Any]:
    """Return the models of all sections by name; loaded on use, as pydantic is slow to load."""
    from vision3d_engine.core.settings import SECTIONS

    return SECTIONS


def _plain(cfg: Any) -> dict[str, Any]:
    plain = {} if cfg is None else to_plain(cfg)
    if not isinstance(plain, dict):
        message = f"cfg is a {type(cfg).__name__}; expected a dict, EasyDict, OmegaConf, dataclass, Namespace or None"
        raise ConfigError(message)
    return plain


def _sections(plain: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the sections that the engine knows; a config without one has an empty one."""
    sections = {name: plain.get(name) or {} for name in _known()}
    wrong = [name for name, section in sections.items() if not isinstance(section, dict)]
    _raise_if_any([f"cfg.{name} is {sections[name]!r}; expected a group of settings" for name in wrong])
    return sections


def _unknown_keys(name: str, section: Mapping[str, Any]) -> list[str]:
    known = _known()[name].model_fields
    if _known()[name].takes_further(section):
        return []
    hints = {key: did_you_mean(key, known, similarity=0.75) for key in section if key not in known}
    expected = f" (cfg.{name} has: {shortened(list(known), 10)})"
    return [f"cfg.{name}.{key} is unknown{hint or expected}" for key, hint in hints.items()]


def _misspelt(plain: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """Say which groups are nearly one of these sections that is not there: its settings would be passed over."""
    wanted = list(names)
    unknown = [key for key in plain if key not in _known()]
    hints = {key: did_you_mean(key, [name for name in wanted if _is_meant(plain, key, name)], 0.85) for key in unknown}
    return [f"cfg.{key} is unknown{hint}" for key, hint in hints.items() if hint]


def _is_meant(plain: Mapping[str, Any], key: str, name: str) -> bool:
    """Tell whether a group may stand for a section: that one is not there, or the group has its keys alone."""
    if name not in plain:
        return True
    group, fields = plain[key], _known()[name].model_fields
    return isinstance(group, Mapping) and bool(group) and group.keys() <= fields.keys()


def _validate(name: str, values: Mapping[str, Any]) -> tuple[Any, list[str]]:
    """Return the settings of a section, or None and one line per mistake."""
    from pydantic import ValidationError

    try:
        return _known()[name].model_validate(values), []
    except ValidationError as error:
        return None, [_mistake(name, details) for details in error.errors()]


def _mistake(name: str, details: Mapping[str, Any]) -> str:
    """Say what is wrong with one value: dotted key, what was got, what is allowed, what the key means."""
    if not details["loc"]:  # what does not go together
        return f"cfg.{name}: {details['msg'].removeprefix('Value error, ')}"
    key, meaning, fields = f"cfg.{name}", "", _known()[name].model_fields
    for part in details["loc"]:
        key += f"[{part}]" if isinstance(part, int) else f".{part}"
        field = fields.get(str(part))
        if field is not None:
            meaning, fields = f" {field.description}", _inner_fields(field)
    if details["type"] == "missing":
        return f"{key} is missing:{meaning}"
    if details["type"] == "extra_forbidden":
        last, group = details["loc"][-1], key.rpartition(".")[0]
        return f"{key} is unknown{did_you_mean(last, fields) or f' ({group} has: {listed(fields)})'}"
    allowed = details["msg"].removeprefix("Value error, ").replace("Input should be", "it must be")
    return f"{key} is {details['input']!r}; {allowed}.{meaning}"


def _inner_fields(field: Any) -> Mapping[str, Any]:
    """Return the fields of the groups that a setting lists; none for a plain setting."""
    inner = [kind.model_fields for kind in get_args(field.annotation) if hasattr(kind, "model_fields")]
    return inner[0] if inner else {}


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
        ConfigError: with every mistake at once, and the line of the file for an unknown or doubled key.
    """
    values, lines = read_yaml(Path(path)) if path is not None else ({}, {})
    words = cli.own_argv() if argv is None else argv
    mistakes = [*doubled(lines), *_undashed(values, words)]
    mistakes += [line for dotted, given in cli.take_overrides(words) if (line := _override(values, dotted, given))]
    _raise_if_any([_with_line(line, lines, path) for line in [*mistakes, *_mistakes_in(values)]])
    cli.get_parser().epilog = "settings:\n" + "\n".join(_help_lines(values))
    return Config(values)


def refuse_unread(word: str) -> None:
    """Refuse a word of the command line that names a setting of the engine, or nearly one, and was read by nobody.

    Raises:
        ConfigError: with what reads it.
    """
    dotted = word.removeprefix("--").partition("=")[0].replace("-", "_")
    known = [f"{name}.{key}" for name in _ENGINE_SECTIONS for key in _known()[name].model_fields]
    if dotted in known or did_you_mean(dotted, known, similarity=0.85):
        raise ConfigError(_UNREAD.format(word))


def _undashed(values: Mapping[str, Any], words: Sequence[str]) -> Iterator[str]:
    """Say which words are settings without their dashes; one behind a flag may be its value, and belongs to it."""
    known = _all_keys(values)
    groups = {key.split(".")[0] for key in known if "." in key}
    for before, word in pairwise(["", *words]):
        name, equals, text = word.removeprefix("-").partition("=")
        group, dot, _ = name.partition(".")
        is_value = before.startswith("-") and "=" not in before
        if dot and not is_value and (name in known or (equals and group in groups)):
            yield f"'{word}' on the command line sets nothing; expected --{name}={text or 'VALUE'}"


def _override(values: dict[str, Any], dotted: str, words: Sequence[str]) -> str | None:
    """Set one dotted key to the first of the words behind it; return what is wrong with it, if anything."""
    section, *path, last = dotted.replace("-", "_").split(".")
    group = values.setdefault(section, {}) if section in _known() else values.get(section)
    for part in path:
        group = group.get(part) if isinstance(group, dict) else None
    if not isinstance(group, dict) or not (section in _known() or last in group):
        return f"--{dotted} is unknown{did_you_mean(dotted, _all_keys(values))}"
    if wrong := _wrong_count(dotted, words, group.get(last, _default(section, last))):
        return wrong
    group[last] = parse_value(words[0]) if words else True
    return None


def _wrong_count(dotted: str, words: Sequence[str], present: Any) -> str | None:
    """Say that there are more or fewer words behind an override than it takes: one, or none for a switch."""
    if not words and not isinstance(present, bool):
        example = "VALUE" if present is None else present
        return f"--{dotted} has no value; expected one, such as --{dotted} {example}"
    if not words[1:] or cli.get_parser().has_positionals():
        return None
    fix = f"write a list as --{dotted} '[{listed(words)}]', and words that the script itself reads in front"
    return f"--{dotted} has {len(words)} values ({' '.join(words)}); expected one: {fix}"


def _default(section: str, key: str) -> Any:
    """Return what a setting is that no one has given; None for what the engine does not know."""
    field = _known()[section].model_fields.get(key) if section in _known() else None
    return None if field is None else field.default


def _all_keys(values: Mapping[str, Any]) -> list[str]:
    """List every dotted key that can be overridden."""
    known = [f"{name}.{key}" for name, section in _known().items() for key in section.model_fields]
    return [*_dotted_keys(values), *known]


def _dotted_keys(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    """List every dotted key of a nest."""
    keys = []
    for key, value in values.items():
        keys += _dotted_keys(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [f"{prefix}{key}"]
    return keys


def _mistakes_in(values: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with the sections that are there."""
    yield from _misspelt(values, _ENGINE_SECTIONS)
    sections = _sections(values)
    for name in [name for name in sections if name in values]:
        yield from _unknown_keys(name, sections[name]) if name in _STRICT_SECTIONS else ()
        yield from _validate(name, sections[name])[1]


def _with_line(mistake: str, lines: Mapping[str, Sequence[int]], path: str | Path | None) -> str:
    """Add file and line to a mistake that came from the file."""
    found = re.match(r"cfg\.([\w.]+)", mistake)
    numbers = lines.get(found.group(1)) if found else None
    return f"{mistake} ({path}, line {numbers[-1]})" if numbers else mistake


def _help_lines(values: Mapping[str, Any]) -> Iterator[str]:
    """Yield a help line for every setting that can be overridden, with its present value."""
    sections = _sections(values)
    for name in _STRICT_SECTIONS:
        for key, field in _known()[name].model_fields.items():
            yield f"  --{name}.{key} {sections[name].get(key, field.default)}\n        {field.description}"
    yield from (f"  --{key}" for key in _dotted_keys(values) if key.split(".")[0] not in sections)
