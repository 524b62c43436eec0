"""The one door to the command line: the parser that scripts share with the engine, and the engine's own flags."""

import argparse
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any

from vision3d_engine.core.errors import ConfigError, did_you_mean
from vision3d_engine.core.switches import CountSwitch, ResumeSwitch, Switch

# Programs that run other people's code: their command line is not ours.
_FOREIGN_PROGRAMS = {"pytest", "py.test", "ipykernel_launcher", "colab_kernel_launcher", "ipython", "default_worker"}


class Flags(argparse.ArgumentParser):
    """An argument parser that knows which flags the engine added, so that a script's own flags always win."""

    def __init__(self) -> None:
        super().__init__(
            allow_abbrev=False, conflict_handler="resolve", formatter_class=argparse.RawDescriptionHelpFormatter
        )
        self._engine_flags: dict[str, argparse.Action] = {}
        self.override_words: list[str] = []

    def add_engine_flag(self, *names: str, **options: Any) -> None:
        """Add a flag of the engine unless the script has already defined one of its names."""
        if any(name in self._option_string_actions for name in names):
            return
        flag = self.add_argument(*names, default=None, **options)
        self._engine_flags[flag.dest] = flag

    @property
    def engine_keys(self) -> set[str]:
        """Names of the flags that are still the engine's: a script may have taken one over."""
        known = self._option_string_actions
        return {key for key, flag in self._engine_flags.items() if known.get(f"--{key}") is flag}

    def parse_known_args(  # pyright: ignore[reportIncompatibleMethodOverride]  # its overloads differ by namespace
        self, args: Iterable[str] | None = None, namespace: Any = None
    ) -> Any:
        """Parse words, by default those of this process; the engine's flags are known, and take no word of others."""
        add_engine_flags(self)
        words = own_argv() if args is None else list(args)
        return super().parse_known_args(list(self._spelled_out(words)), namespace)

    def _spelled_out(self, words: Sequence[str]) -> Iterator[str]:
        """Yield the words, with each switch of the engine joined to its value: argparse would take any word for it.

        Overrides of `take_overrides` are read already, each with one word behind it.
        """
        rest = iter(zip(words, [*words[1:], "--"], strict=False))
        for word, following in rest:
            switch = self._option_string_actions.get(word)
            if word in self.override_words:
                _ = "=" in word or _is_flag(following) or next(rest)
            elif isinstance(switch, Switch):
                is_value = switch.takes(following, self.has_positionals())
                yield f"{word}={next(rest)[0] if is_value else True}"
            else:
                yield word

    def has_positionals(self) -> bool:
        """Tell whether words without dashes have a reader."""
        return any(not action.option_strings for action in self._actions)

    def misplaced(self, words: Sequence[str], unread: Sequence[str]) -> Iterator[str]:
        """Say of each switch of the engine which word is behind it, if this is no value and nobody reads it.

        Args:
            words: a command line.
            unread: its words that the parser does not know.
        """
        for word, following in pairwise(words):
            switch = self._option_string_actions.get(word)
            if not isinstance(switch, Switch) or switch.takes(following, self.has_positionals()):
                continue
            if following in unread and not following.startswith("-"):
                yield f"nobody reads '{following}' behind {word}, which takes {switch.expected}"

    def misspelt(self, flag: str) -> str:
        """Name the flag that is nearly this one; ``--devices``, which goes on where ``--device`` ends, is another's."""
        others = (known for known in self._option_string_actions if not flag.startswith(known))
        return did_you_mean(flag, others, similarity=0.85)

    def knows(self, flag: str) -> bool:
        """Tell whether a flag is defined."""
        return flag in self._option_string_actions

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
    return [] if "parsed elsewhere" in _SHARED else script_words()[1:]


def script_words() -> list[str]:
    """Return the script's name and the words after it; ``SCRIPT`` alone in a notebook, under pytest and the like."""
    program = Path(sys.argv[0] if sys.argv else "")
    is_foreign = not program.name or {program.stem, program.name, program.parent.name} & _FOREIGN_PROGRAMS
    return ["SCRIPT"] if is_foreign else [*sys.argv]


def ignore_command_line() -> None:
    """Leave this process's command line to a parser of the script's own: no trainer, tester or `load_config` reads it.

    To be called before the first of them is made; settings come from configs alone then.
    """
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


def script_arguments(command: str) -> dict[str, str]:
    """Return what a command gives to flags that are not the engine's, by flag, and its other words by their place.

    Args:
        command: as `command_line` returns it.
    """
    add_engine_flags(engine := Flags())
    found, flag = {}, ""
    for place, word in enumerate(shlex.split(command)[2:], 1):
        name, equals, value = word.partition("=")
        if _is_flag(word):
            flag, found[name] = name, [value] if equals else []
        else:
            found.setdefault(flag or f"word {place}", []).append(word)
    return {name: " ".join(values) or "given" for name, values in found.items() if not engine.knows(name)}


def add_engine_flags(parser: Flags) -> None:
    """Add the flags that work in any script that builds a trainer or tester."""
    add = parser.add_engine_flag
    add("--resume", action=ResumeSwitch, metavar="PATH", help="go on from the latest checkpoint, or from another")
    add("--overwrite", action=Switch, help="remove the checkpoints of an earlier run in the folder")
    add("--allow_changed_data", action=Switch, help="resume although data or batch size changed")
    add("--overfit", type=int, metavar="N", help="train and validate on the same N batches over and over")
    few = "a few steps of everything, and a save and a load, in a scratch folder (default: 1)"
    add("--fast_dev_run", action=CountSwitch, metavar="N", help=few)
    add("--log_steps", type=int, metavar="N", help="iterations from one log line to the next")
    add("--debug", action=Switch, help="anomaly detection and a check of every loss and gradient")
    add("--pdb", action=Switch, help="open python's debugger where an error has left the script")
    add("--profile", metavar="FIRST:END", help="profile the training steps from FIRST on up to, without, END")
    add("--memory_snapshot", action=Switch, help="record the memory of a CUDA device for torch's memory_viz")
    add("--save_latest_n_models", type=int, metavar="N", help="how many epoch-N.pth files to keep (-1 = all)")
    add("--cudnn_deterministic", action=Switch, help="repeatable cuDNN kernels")
    add("--checkpoint", metavar="PATH", help="checkpoint to load: a path, or a name in the checkpoint folder")
    add("--test_epoch", type=int, metavar="N", help="test the model of this epoch")
    add("--test_name", metavar="NAME", help="name of the test, for several tests in one run folder")
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
        """Return the engine's own flags that were given.

        Raises:
            ConfigError: when two of them name a checkpoint.
        """
        given = vars(self._namespace)
        values = {key: given[key] for key in self._parser.engine_keys - {"local_rank"} if given.get(key) is not None}
        if (path := given.get("resume_from")) is None:
            return values
        if other := values.get("checkpoint"):
            raise ConfigError(f"--resume names '{path}' and --checkpoint '{other}'; name one of them")
        return {**values, "checkpoint": path}

    def fill(self, values: dict[str, Any]) -> None:
        """Show the settings in force under the engine's flags that were not given."""
        for key in self._parser.engine_keys & values.keys():
            setattr(self._namespace, key, values[key])

    def check(self) -> list[str]:
        """Return flags that nobody knows.

        Raises:
            ConfigError: for one that is nearly the name of a known flag, since a mistyped ``--resume`` must not start
                a new run; and for a word behind a switch of the engine that is not one of its values.
        """
        _ = self.namespace
        for mistake in self._parser.misplaced(self._argv, self._unknown):
            message = f"{mistake}. Put words that the script itself reads before it"
            raise ConfigError(message)
        strange = [word for word in self._unknown if word.startswith("--")]
        for word in strange:
            if hint := self._parser.misspelt(word.split("=")[0]):
                fix = "Correct it; a flag of the script's own is defined at get_parser(), or see ignore_command_line()"
                message = f"unknown argument {word}{hint} {fix}"
                raise ConfigError(message)
        return strange


def take_overrides(argv: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield the key of each ``--a.b`` or ``--a.b=text`` and all words behind it.

    The shared parser passes over an override and its value then.

    Args:
        argv: words of a command line.
    """
    for index, word in enumerate(argv):
        name, equals, text = word.removeprefix("--").partition("=")
        if word.startswith("--") and "." in name:
            get_parser().override_words.append(word)
            behind = takewhile(lambda each: not _is_flag(each), argv[index + 1 :])
            yield name, [*([text] if equals else []), *behind]


def _is_flag(word: str) -> bool:
    """Tell whether a word is a flag and no value, such as a negative number."""
    return word.startswith("-") and not word[1:2].isdigit() and not word.startswith("-.")
