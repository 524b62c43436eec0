"""The one door to the command line: the parser that scripts share with the engine, and the engine's own flags."""

import argparse
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vision3d_engine.core.errors import ConfigError, did_you_mean

# Programs that run other people's code: their command line is not ours.
_FOREIGN_PROGRAMS = {"pytest", "py.test", "ipykernel_launcher", "colab_kernel_launcher", "ipython", "default_worker"}


class Flags(argparse.ArgumentParser):
    """An argument parser that knows which flags the engine added, so that a script's own flags always win."""

    def __init__(self) -> None:
        super().__init__(
            allow_abbrev=False, conflict_handler="resolve", formatter_class=argparse.RawDescriptionHelpFormatter
        )
        self.engine_keys: set[str] = set()
        self.override_words: list[str] = []

    def add_engine_flag(self, *names: str, **options: Any) -> None:
        """Add a flag of the engine unless the script has already defined one of its names."""
        if any(name in self._option_string_actions for name in names):
            return
        self.engine_keys.add(self.add_argument(*names, default=None, **options).dest)

    def known_flags(self) -> list[str]:
        """Return every flag that can be given."""
        return list(self._option_string_actions)

    def count(self) -> int:
        """Return how many arguments are defined; it grows when a script adds one."""
        return len(self._actions)


_SHARED: dict[str, Any] = {}


def get_parser() -> Flags:
    """Return the parser that all trainers, testers and the script itself share in this process."""
    if "parser" not in _SHARED:
        _SHARED["parser"] = Flags()
    return _SHARED["parser"]


def reset_parser() -> None:
    """Forget the shared parser and every flag in it; for notebooks and tests."""
    _SHARED.clear()


def add_argument(*args: Any, **kwargs: Any) -> None:
    """Add a flag to the shared parser."""
    get_parser().add_argument(*args, **kwargs)


def add_argument_group(*args: Any, **kwargs: Any) -> None:
    """Add a group of flags to the shared parser."""
    get_parser().add_argument_group(*args, **kwargs)


def parse_args() -> argparse.Namespace:
    """Parse the command line with the shared parser; an unknown flag ends the program, as argparse does."""
    add_engine_flags(get_parser())
    return get_parser().parse_args(own_argv())


def own_argv() -> list[str]:
    """Return the words after the script's name, or nothing in a notebook, under pytest and the like."""
    program = Path(sys.argv[0] if sys.argv else "")
    is_foreign = not program.name or {program.stem, program.name, program.parent.name} & _FOREIGN_PROGRAMS
    return [] if is_foreign or "parsed elsewhere" in _SHARED else sys.argv[1:]


def without_script_flags() -> None:
    """Say that another parser reads this process's command line, as the engine's own commands do."""
    _SHARED["parsed elsewhere"] = True


def own_words() -> list[str]:
    """Return the words after the program's name."""
    return sys.argv[1:]


def pretend(script: str, words: Sequence[str]) -> None:
    """Let this process's command line be that of a script."""
    sys.argv[:] = [script, *words]


def force(**sections: dict[str, Any]) -> None:
    """Let settings win over every config and command line of this process, by section."""
    _SHARED["forced"] = sections


def forced(section: str) -> dict[str, Any]:
    """Return the settings of a section that were forced."""
    return _SHARED.get("forced", {}).get(section, {})


def command_line() -> str:
    """Return the command that started this process, quoted for a shell."""
    return shlex.join([Path(sys.executable).name, *sys.argv])


class _Switch(argparse.Action):
    """``--name``, ``--name False`` and ``--no-name``: a switch that also takes a word, as old scripts pass one."""

    def __init__(self, option_strings: Sequence[str], dest: str, **options: Any) -> None:
        opposites = [f"--no-{name[2:]}" for name in option_strings]
        super().__init__([*option_strings, *opposites], dest, nargs="?", metavar="True|False", **options)

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        word = "true" if values is None else str(values).lower()
        if word not in (true := {"true", "1", "yes", "on"}) | {"false", "0", "no", "off"}:
            parser.error(f"argument {option_string}: got {values!r}, expected True or False")
        setattr(namespace, self.dest, (word in true) != (option_string or "").startswith("--no-"))


def add_engine_flags(parser: Flags) -> None:
    """Add the flags that work in any script that builds a trainer or tester."""
    add = parser.add_engine_flag
    add("--resume", action="store_const", const=True, help="go on from the latest checkpoint")
    add("--overwrite", action="store_const", const=True, help="remove the checkpoints of an earlier run in the folder")
    add("--allow_changed_data", action="store_const", const=True, help="resume although data or batch size changed")
    add("--log_steps", type=int, metavar="N", help="iterations from one log line to the next")
    add("--debug", action="store_const", const=True, help="anomaly detection and a check of every gradient")
    add("--save_latest_n_models", type=int, metavar="N", help="how many epoch-N.pth files to keep (-1 = all)")
    add("--cudnn_deterministic", action=_Switch, help="repeatable cuDNN kernels")
    add("--checkpoint", metavar="PATH", help="checkpoint to load: a path, or a name in the checkpoint folder")
    add("--test_epoch", type=int, metavar="N", help="test the model of this epoch")
    add("--device", help="device to run on, such as cpu, cuda:1 or mps")
    add("--local-rank", "--local_rank", type=int, help=argparse.SUPPRESS)


class Arguments:
    """The parsed command line of one trainer or tester; flags that a script adds later are parsed when asked for."""

    def __init__(self) -> None:
        self._parser = get_parser()
        add_engine_flags(self._parser)
        self._argv = own_argv()
        self._namespace, self._unknown = self._parser.parse_known_args(self._argv)
        self._parsed = self._parser.count()

    @property
    def namespace(self) -> argparse.Namespace:
        """All arguments, the engine's and the script's."""
        if self._parser.count() != self._parsed:
            self._unknown = self._parser.parse_known_args(self._argv, self._namespace)[1]
            self._parsed = self._parser.count()
        return self._namespace

    def engine_values(self) -> dict[str, Any]:
        """Return the engine's own flags that were given."""
        given = vars(self._namespace)
        return {key: given[key] for key in self._parser.engine_keys - {"local_rank"} if given.get(key) is not None}

    def fill(self, values: dict[str, Any]) -> None:
        """Show the settings in force under the engine's flags that were not given."""
        for key in self._parser.engine_keys & values.keys():
            setattr(self._namespace, key, values[key])

    def check(self) -> list[str]:
        """Return flags that nobody knows.

        Raises:
            ConfigError: for one that is nearly the name of a known flag, since a mistyped ``--resume`` must not start
                a new run.
        """
        _ = self.namespace
        overrides = self._parser.override_words
        strange = [word for word in self._unknown if word.startswith("--") and word not in overrides]
        for word in strange:
            if hint := did_you_mean(word.split("=")[0], self._parser.known_flags(), similarity=0.85):
                message = f"unknown argument {word}{hint}"
                raise ConfigError(message)
        return strange


def take_overrides(argv: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield ``(key, text)`` for ``--a.b text``, ``--a.b=text`` and ``--a.b`` (true); the shared parser knows them then.

    Args:
        argv: words of a command line.
    """
    for word, following in zip(argv, [*argv[1:], "--"], strict=False):
        name, equals, text = word.removeprefix("--").partition("=")
        if word.startswith("--") and "." in name:
            get_parser().override_words.append(word)
            yield name, text if equals else "true" if following.startswith("--") else following
