"""What a process that replays a step is told, and what it answers."""

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

from vision3d_engine.core.errors import ConfigError

Vary = Literal["precision", "sample"]
"""What to change when a step is run once more: its type of numbers, or the samples of its batch."""
#: folder of the replayed run in the scratch folder
RUN = "run"


@dataclass(frozen=True)
class Target:
    """The step to replay: its number since the start of the run, or its epoch and its iteration there.

    Raises:
        ConfigError: when it is neither, or both.
    """

    step: int | None = None
    epoch: int | None = None
    iteration: int | None = None

    def __post_init__(self) -> None:
        given = [each for each in (self.step, self.epoch, self.iteration) if each is not None]
        is_pair = self.step is None and len(given) == 2  # noqa: PLR2004  epoch and iteration
        if not (is_pair or (self.step is not None and len(given) == 1)) or min(given) < 1:
            message = f"replay got step {self.step}, epoch {self.epoch}, iteration {self.iteration}; expected is "
            raise ConfigError(message + "--step N, or --epoch N --iteration M, all counted from 1")

    def is_at(self, progress: Any) -> bool:
        """Tell whether the counters of a run, or of a step in it, stand at this step."""
        if self.step is not None:
            return progress.total_steps == self.step
        return (progress.epoch, progress.iteration) == (self.epoch, self.iteration)

    def is_after(self, progress: Mapping[str, Any]) -> bool:
        """Tell whether a run that goes on from saved counters comes to this step."""
        if self.step is not None:
            return progress["total_steps"] < self.step
        is_closed = progress["is_trained"] or not progress["is_open"]
        trained = float("inf") if is_closed else progress["trained"]
        return (progress["epoch"], trained) < (self.epoch, self.iteration)

    def is_next(self, progress: Mapping[str, Any]) -> bool:
        """Tell whether it is the first step that a run makes that goes on from saved counters."""
        if self.step is not None:
            return progress["total_steps"] == self.step - 1
        is_open = progress["is_open"] and not progress["is_trained"]
        place = (progress["epoch"], progress["trained"] + 1) if is_open else (progress["epoch"] + 1, 1)
        return place == (self.epoch, self.iteration)

    def __str__(self) -> str:
        return f"step {self.step}" if self.step is not None else f"epoch {self.epoch}, iteration {self.iteration}"


@dataclass(frozen=True)
class Plan:
    """What a process is told.

    Attributes:
        script: the script.
        target: the step.
        scratch: a folder for all that the script writes.
        processes: how many there are; None until it is known how many the run had.
        debugger: open python's debugger in the step.
        capsule: the file with the step; None for a step of a run.
        vary: what is to be changed afterwards: answer with files that hold what this needs.
        in_double: compute the step of a file in float64.
        batch: a file with the batch that takes the place of that of the step; None for its own.
        rank: of several processes the one whose share of the step one process replays; None for all of them.
        reruns: it may make the steps before it too, which several processes have made.
        drawn: process and iteration whose random numbers the step of a file draws; None for its own.
        clouds: a folder for the clouds of the batch, to be looked at; None for none.
        command: process of the command, with which all others end.
        run: run folder of the trainer whose step it is; None for the first of the script that makes it.
    """

    script: str
    target: Target
    scratch: str
    processes: int | None = None
    debugger: bool = False
    capsule: str | None = None
    vary: Vary | None = None
    in_double: bool = False
    batch: str | None = None
    rank: int | None = None
    reruns: bool = False
    drawn: Sequence[int] | None = None
    clouds: str | None = None
    command: int = field(default_factory=os.getpid)
    run: str | None = None

    def refuse(self, message: str, *, says: bool = True) -> NoReturn:
        """End the process that replays, with a reason which the command then gives.

        Args:
            message: the reason.
            says: write it down; of several processes the main one does.
        """
        if says:
            self.answer.add(refused=message)
        raise SystemExit

    @property
    def answer(self) -> "AnswerFile":
        """Where it answers; of several processes the main one."""
        return AnswerFile(Path(self.scratch) / "answer.json")

    def share(self, rank: int) -> "AnswerFile":
        """Where a process answers of its share: whether it is to blame, and what another run of it needs."""
        return AnswerFile(Path(self.scratch) / f"share-{rank}.json")

    @property
    def shares(self) -> "dict[int, dict[str, Any]]":
        """What processes have answered of their shares, by rank; none of those that have not come to the step."""
        answers = {rank: self.share(rank).read() for rank in range(self.processes or 1)}
        return {rank: answer for rank, answer in answers.items() if answer}

    def to_json(self) -> str:
        """Return it as text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        """Return it as it was."""
        values = json.loads(text)
        return cls(**{**values, "target": Target(**values["target"])})


class AnswerFile:
    """A few facts for the process that has started this one.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def add(self, **facts: Any) -> None:
        """Add facts."""
        self._path.write_text(json.dumps(self.read() | facts))

    def read(self) -> dict[str, Any]:
        """Return all facts; none if nothing was answered."""
        with suppress(FileNotFoundError):
            return json.loads(self._path.read_text())
        return {}
