"""Switches of the command line that also take a word."""

import argparse
from collections.abc import Sequence
from typing import Any

from vision3d_engine.core.files import absolute_path

_YES, _NO = ("true", "1", "yes", "on"), ("false", "0", "no", "off")
_TRUTH: dict[str, bool] = {word: word in _YES for word in (*_YES, *_NO)}


class Switch(argparse.Action):
    """``--name``, ``--name False`` and ``--no-name``: a switch that also takes a word, as old scripts pass one."""

    expected = "True or False"

    def __init__(self, option_strings: Sequence[str], dest: str, **options: Any) -> None:
        opposites = [f"--no-{name[2:]}" for name in option_strings]
        super().__init__([*option_strings, *opposites], dest, nargs="?", **{"metavar": "True|False", **options})

    def takes(self, word: str, has_positionals: bool) -> bool:
        """Tell whether a word behind the switch is its value, and not one that the script reads as a positional."""
        return word.lower() in (("true", "false") if has_positionals else _TRUTH)

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        """Set the truth that its word says, turned round by ``--no-``."""
        truth = _TRUTH.get(str(values).lower())
        if truth is None:
            parser.error(f"argument {option_string}: got {values!r}, expected {self.expected}")
        setattr(namespace, self.dest, truth != (option_string or "").startswith("--no-"))


class CountSwitch(Switch):
    """``--name``, which is 1, and ``--name N``."""

    expected = "a number"

    def takes(self, word: str, has_positionals: bool) -> bool:
        """Tell whether a word behind it is its number."""
        return word.isdigit() or super().takes(word, has_positionals)

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        """Set its number."""
        if str(values).isdigit():
            setattr(namespace, self.dest, int(values))
        else:
            super().__call__(parser, namespace, values, option_string)
            setattr(namespace, self.dest, int(getattr(namespace, self.dest)))


class ResumeSwitch(Switch):
    """``--resume``, which also takes the path of the checkpoint, or of the run folder, to go on from."""

    expected = "True, False, or a checkpoint or run folder that exists"

    def takes(self, word: str, has_positionals: bool) -> bool:
        """Tell whether a word behind it is its path."""
        is_path = bool(word) and not has_positionals and absolute_path(word).exists()
        return is_path or super().takes(word, has_positionals)

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        """Set whether to go on, and from where."""
        is_path = str(values).lower() not in _TRUTH and option_string == "--resume"
        namespace.resume_from = values if is_path else None
        super().__call__(parser, namespace, True if is_path else values, option_string)
