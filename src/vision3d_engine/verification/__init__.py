"""Prove for a user's own script that a kill and a resume change no bit: ``vision3d-engine verify-resume``.

`places` chooses where to kill, `runs` starts the script, `probe` and `notes` act in its process, `comparison` finds the
first difference and what usually causes it.
"""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from vision3d_engine.core.errors import ConfigError, EngineError, shortened
from vision3d_engine.verification.comparison import NOT_REPEATED, Difference, first_difference, lost_attributes
from vision3d_engine.verification.places import Kill, Note, choose
from vision3d_engine.verification.runs import Script


def verify_resume(
    script: Path,
    arguments: Sequence[str],
    steps: int,
    kills: int,
    seed: int,
    say: Callable[[str], None],
) -> str:
    """Run a training script straight, and again with a kill and a resume at each of several places; compare all bits.

    Each run is a process of its own, with a run folder of its own in a temporary place; the script sees its usual
    command line.

    Args:
        script: the training script.
        arguments: its command line.
        steps: training steps to compare, in epochs that are cut to a third of them.
        kills: at how many places to kill and to resume.
        seed: chooses among places of one kind.
        say: takes a line for each place.

    Returns:
        A sentence on what was compared.

    Raises:
        ConfigError: for less than one step or kill.
        EngineError: when a resumed run differs, when the script differs from itself without a resume, or when it fails.
    """
    if min(steps, kills) < 1:
        message = f"verify-resume got steps {steps} and kills {kills}; expected are at least 1 of each"
        raise ConfigError(message)
    with tempfile.TemporaryDirectory() as folder:
        runs = Script(script, arguments, Path(folder), steps)
        straight = runs.straight()
        say(_plan(runs, straight, kills, seed))
        verdicts = [_try(runs, straight, kill, say) for kill in choose(straight, kills, seed)]
    _raise_for([verdict for verdict in verdicts if verdict is not None], kills, runs.name)
    return f"the same bits: {kills} of {kills} resumed runs of {runs.name} are the run that was not interrupted"


def _plan(runs: Script, straight: Sequence[Note], kills: int, seed: int) -> str:
    """Say what is compared."""
    steps = max(note.parts["step"] for note in straight)
    epochs = len({note.place.epoch for note in straight if note.place.moment == "before_train_step"})
    said = f"{runs.name}: {steps} training steps, {epochs} epochs of at most {runs.longest_epoch} batches"
    return f"{said}; kills: {kills}, at places chosen by seed {seed}"


def _raise_for(found: Sequence[Difference], kills: int, name: str) -> None:
    """Raise `EngineError` where there are differences, with the usual causes, each once."""
    if found:
        message = f"{len(found)} of {kills} resumed runs of {name} are not the run that was not interrupted"
        causes = {difference.part: f"\n{difference.part}: {difference.cause}" for difference in found}
        raise EngineError(f"{message}. What usually causes it, by what differs first:{''.join(causes.values())}")


def _try(runs: Script, straight: Sequence[Note], kill: Kill, say: Callable[[str], None]) -> Difference | None:
    """Kill and resume at one place; say and return what differs first.

    Raises:
        EngineError: when the killed run differs before it is killed, so that no resume is to blame.
    """
    killed, resumed = runs.killed_and_resumed(kill)
    if found := first_difference(straight[: len(killed)], killed):
        message = f"{runs.name} does not repeat itself, even without a resume: run twice, it differs first {found}"
        raise EngineError(f"{message}\n{NOT_REPEATED}")
    difference = first_difference(straight, resumed)
    ignored = lost_attributes(straight, killed)
    lost = lost_attributes(straight, resumed, until=difference and difference.place, ignored=ignored)
    say(f"  differs    {kill}\n             first {difference}" if difference else f"  same bits  {kill}")
    if lost:
        known = "attributes that differ too" if difference else "lost, though no number shows it yet"
        say(f"             {known}: {shortened(list(lost.values()))}")
    return difference
