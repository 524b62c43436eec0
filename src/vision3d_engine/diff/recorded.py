"""What a run has recorded that can be compared: settings, surroundings, data, and numbers by step."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vision3d_engine.core.errors import FolderError
from vision3d_engine.diff.tables import Table
from vision3d_engine.report.run_data import CONFIG, ENVIRONMENT, NUMBERS, RunData, read_run, section
from vision3d_engine.results.comparison import RunTest
from vision3d_engine.results.names import tests_in
from vision3d_engine.run.run_folder import STEPS
from vision3d_engine.run.session import STOPPED
from vision3d_engine.writers.step_values import step_lines

_ENDED = "run ended"


class Interval(NamedTuple):
    """Steps between two log lines.

    Attributes:
        epoch: their epoch.
        before: steps of the run before it.
        processes: how many the run had; 0 where that is not recorded.
        last: the last of the steps.
    """

    epoch: int
    before: int
    processes: int
    last: int


class Recorded(NamedTuple):
    """What a run has recorded.

    Attributes:
        run: its settings, environment, curves and notes.
        steps: what its steps have returned, to the bit.
        intervals: where these steps were, the earliest first.
    """

    run: RunData
    steps: dict[int, dict[str, float]]
    intervals: list[Interval]

    @property
    def missing(self) -> list[str]:
        """The files that are not there, or that nothing can be read from."""
        is_there = {CONFIG: self.run.settings, ENVIRONMENT: self.run.environment, NUMBERS: self.run.curves}
        return [name for name, found in {**is_there, STEPS: self.steps}.items() if not found]

    @property
    def end(self) -> str:
        """What the log says of the end of the run, behind a comma; empty where it has ended as it should."""
        ends = [note for note in self.run.notes if note.text.startswith((_ENDED, STOPPED))]
        began = max((_digits(path.stem) for path in self.run.logs.glob("train-*.log")), default="")
        if not ends or _digits(ends[-1].time) < began:  # a later attempt is under way, or was killed
            return ", has not ended"
        return "" if ends[-1].text.startswith(_ENDED) else f", {ends[-1].text.splitlines()[0]}"

    @property
    def was_resumed(self) -> bool:
        """Whether it has gone on from a checkpoint."""
        return bool(section(self.run.environment, "trainer").get("began_behind"))

    def interval(self, step: int) -> Interval | None:
        """Return where a step was; None where that is not recorded."""
        return next((each for each in self.intervals if each.before < step <= each.last), None)

    def means(self) -> Table:
        """Return the numbers of log lines, means over their interval, by step."""
        return self._curves(lambda phase, key: key if phase == "train" and not _is_rate(key) else None)

    def rates(self) -> Table:
        """Return the learning rates that the steps of log lines have used."""
        return self._curves(lambda phase, key: key if phase == "train" and _is_rate(key) else None)

    def validations(self) -> Table:
        """Return the numbers of validations, by training steps before them."""
        return self._curves(lambda phase, key: f"{phase}/{key}" if phase.partition("/")[0] == "val" else None)

    def _curves(self, name_of: Callable[[str, str], str | None]) -> Table:
        table: dict[int, dict[str, float]] = {}
        for curve, points in self.run.curves.items():
            if (name := name_of(*curve)) is not None:
                for place, number in zip(*points, strict=True):
                    table.setdefault(int(place), {})[name] = number
        return table


def read_recorded(folder: Path) -> Recorded:
    """Read what a run has recorded; what is missing, torn or still to come is left out.

    Raises:
        FolderError: when no run has worked there, or a test alone.
    """
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise FolderError(f"'{folder}' {what}: name the folder that is exp.output_dir of a run")
    run = read_run(RunTest(folder, ""))
    if not (run.settings or run.environment or run.curves) and tests_in(folder):
        message = f"'{folder}' is the folder of a test, which has no training steps: compare tests by"
        raise FolderError(f"{message} vision3d-engine table RUN RUN")
    steps: dict[int, dict[str, float]] = {}
    intervals: list[Interval] = []
    for line in step_lines(run.logs / STEPS):
        for step, values in line.steps.items():
            steps[step] = steps.get(step, {}) | values
        intervals.append(Interval(line.epoch, line.before, line.processes, max(line.steps, default=0)))
    return Recorded(run, steps, sorted(intervals, key=lambda each: each.last))


def flat(nest: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of a nest by dotted names, such as ``model.stages.0.width``."""
    entries = nest.items() if isinstance(nest, Mapping) else enumerate(nest) if isinstance(nest, list) else ()
    if not entries or (isinstance(nest, Mapping | list) and not nest):
        yield name, nest
    for key, value in entries:
        yield from flat(value, f"{name}.{key}" if name else str(key))


def _digits(text: str) -> str:
    return "".join(filter(str.isdigit, text))


def _is_rate(key: str) -> bool:
    return key == "lr" or key.startswith("lr/")
