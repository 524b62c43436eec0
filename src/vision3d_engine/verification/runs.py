"""Runs of a user's script as processes of their own, each a group, with a probe in it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from vision3d_engine.core.errors import EngineError
from vision3d_engine.verification.places import EPOCHS, Kill, Note, Place

_LONGEST_OUTPUT = 3000
_STOPPED = 128 + signal.SIGTERM


@dataclass(frozen=True)
class Plan:
    """What a process is told.

    Attributes:
        script: the script.
        folder: its run folder.
        trace: the file for its notes.
        steps: training steps after which the run ends, at the end of their epoch.
        resume: whether it goes on from a checkpoint.
        kill: where it is killed; None to let it end.
        command: process of the command, with which all others end.
    """

    script: str
    folder: str
    trace: str
    steps: int
    resume: bool = False
    kill: Kill | None = None
    command: int = field(default_factory=os.getpid)

    @property
    def longest_epoch(self) -> int:
        """Batches that an epoch is cut to."""
        return -(-self.steps // EPOCHS)

    @property
    def save_every(self) -> int:
        """Steps from one checkpoint to the next."""
        return max(self.longest_epoch // 2, 1)

    def to_json(self) -> str:
        """Return it as text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        """Return it as it was."""
        values = json.loads(text)
        if kill := values.pop("kill"):
            values["kill"] = Kill(Place(**kill["place"]), kill["by"])
        return cls(**values)


class Script:
    """A training script that is run again and again.

    Args:
        script: its file.
        arguments: its command line.
        folder: where runs and notes lie.
        steps: training steps of a whole run.

    Attributes:
        name: name of the script.
        longest_epoch: batches that epochs are cut to.
    """

    def __init__(self, script: Path, arguments: Sequence[str], folder: Path, steps: int) -> None:
        self.name, self.longest_epoch = script.name, Plan(str(script), "", "", steps).longest_epoch
        self._arguments, self._folder, self._runs = arguments, folder, 0
        self._plan = Plan(str(script), "", "", steps)

    def straight(self) -> list[Note]:
        """Return the notes of a run that is not interrupted.

        Raises:
            EngineError: when it fails, or trains nothing.
        """
        notes = self._run(self._planned(), "run straight")
        if not any(note.place.moment == "before_train_step" for note in notes):
            message = f"{self._plan.script} made no training step: it must call run() of a trainer of vision3d_engine"
            raise EngineError(f"{message}, as it does when it is started by itself, and find a batch")
        return notes

    def killed_and_resumed(self, kill: Kill) -> tuple[list[Note], list[Note]]:
        """Return the notes of a run that is killed, and those of the run that goes on from its folder."""
        plan = self._planned()
        killed = self._run(replace(plan, kill=kill), f"killed by {kill}", (0, -kill.number, _STOPPED))
        resumed = replace(plan, trace=f"{plan.trace}-resumed", resume=True)
        return killed, self._run(resumed, f"resumed after {kill}")

    def _planned(self) -> Plan:
        """Return the plan of a run in a folder of its own."""
        self._runs += 1
        folder = self._folder / f"run-{self._runs}"
        return replace(self._plan, folder=str(folder), trace=f"{folder}.jsonl")

    def _run(self, plan: Plan, what: str, expected: tuple[int, ...] = (0,)) -> list[Note]:
        """Run the script as planned.

        Raises:
            EngineError: when it ends with another code than one of those expected, with the end of its output.
        """
        code, output = _ended(plan, self._arguments)
        lines = Path(plan.trace).read_text(encoding="utf-8").splitlines() if Path(plan.trace).exists() else []
        notes = [Note(Place(*place), parts) for place, parts in map(json.loads, lines)]
        if code not in expected:
            where = f"after {notes[-1].place}" if notes else "before the first hook"
            message = f"{plan.script}, {what}, ended with {code} {where}:\n{output[-_LONGEST_OUTPUT:]}"
            raise EngineError(message)
        return notes


def _ended(plan: Plan, arguments: Sequence[str]) -> tuple[int, str]:
    """Run a process as planned; return its exit code and its output once nothing of its group is left."""
    code = "from vision3d_engine.verification.probe import act; act()"
    command, output = [sys.executable, "-c", code, plan.to_json(), *arguments], Path(f"{plan.trace}.txt")
    with output.open("w") as file:
        process = subprocess.Popen(  # noqa: S603  the user's own script
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            process.wait()
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return process.returncode, output.read_text(errors="replace")
