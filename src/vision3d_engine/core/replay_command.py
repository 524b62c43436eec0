"""How a person replays a training step of this process's script."""

import shlex
from pathlib import Path

from vision3d_engine.core.cli import get_parser, script_words

# Flags of the engine that a replay sets itself, whatever the command line of the run was.
_OVERRIDDEN = {"debug", "pdb", "overwrite", "profile", "memory_snapshot", "fast_dev_run"}


def replay_command(step: int | Path) -> str:
    """Return the command that runs a step again, quoted for a shell.

    Args:
        step: its number since the start of the run, or the file that holds it.
    """
    script, *words = script_words()
    words = list(get_parser().without(words, _OVERRIDDEN))
    what = [script, "--step", str(step)] if isinstance(step, int) else [str(step), "--script", script]
    return shlex.join(["vision3d-engine", "replay", *what, *(["--", *words] if words else [])])
