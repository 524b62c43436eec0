"""Reads what a run has left in its folder; what is missing, half written or of an unknown form is left out."""

import contextlib
import json
import math
import re
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from vision3d_engine.core.errors import ConfigError, FolderError
from vision3d_engine.core.yaml_files import read_yaml
from vision3d_engine.results.comparison import RunTest
from vision3d_engine.results.names import ROWS, SUMMARY, tests_in

CONFIG, ENVIRONMENT, NUMBERS = "config.yaml", "env.json", "metrics.jsonl"
LOGS = "logs"
_LINE = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) \| ([A-Z]+) \| (.*)")
_NOTED = {"WARNING", "ERROR", "CRITICAL"}
_ENDS = re.compile(r"(run|test) ended")
_LONGEST_NOTE, _MOST_NOTES = 4000, 100
_LARGEST = 1e300
Curves = dict[tuple[str, str], tuple[array, array]]
"""Places and numbers of each curve, by phase (``train``, ``val``, ...) and name; what is not finite is NaN."""


class Note(NamedTuple):
    """A warning, an error, or the end of a run or a test, as its log tells it."""

    time: str
    level: str
    text: str


class RunData(NamedTuple):
    """What a run has left.

    Attributes:
        folder: where.
        settings: its config, by section; empty without one.
        environment: where it ran, likewise.
        curves: its numbers.
        test: the name of the test; may be empty.
        others: the names of other tests that have ended there.
        summary: ``results.json`` of the test; empty before it has ended.
        logs: the folder of its logs.
        notes: the last ones of all its logs, the oldest first.
    """

    folder: Path
    settings: dict[str, Any]
    environment: dict[str, Any]
    curves: Curves
    test: str
    others: list[str]
    summary: dict[str, Any]
    logs: Path
    notes: list[Note]

    @property
    def name(self) -> str:
        """The name of the experiment, or of its folder."""
        return str(section(self.settings, "exp").get("name") or self.folder.name)


def read_run(test: RunTest) -> RunData:
    """Read what is in a run folder, of its tests one.

    Raises:
        FolderError: when no run has worked there.
    """
    folder, summary = test.run, test.file(SUMMARY)
    if not any((folder / name).exists() for name in (CONFIG, NUMBERS, LOGS, summary, test.file(ROWS))):
        message = f"'{folder}' is no run: it has none of {CONFIG}, {NUMBERS}, {SUMMARY} and {LOGS}/. Name the folder "
        raise FolderError(f"{message}that is exp.output_dir of a run")
    settings = _settings(folder / CONFIG)
    logs = Path(section(settings, "exp").get("log_dir") or folder / LOGS)
    return RunData(
        folder=folder,
        settings=settings,
        environment=_json(folder / ENVIRONMENT),
        curves=read_curves(folder / NUMBERS),
        test=test.name,
        others=[repr(name) for name in tests_in(folder) if name != test.name],
        summary=_json(summary),
        logs=logs,
        notes=read_notes(logs),
    )


def section(settings: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a section of settings, empty where there is none."""
    found = settings.get(name)
    return found if isinstance(found, dict) else {}


def _settings(path: Path) -> dict[str, Any]:
    with contextlib.suppress(ConfigError):
        return read_yaml(path)[0]
    return {}


def _json(path: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(path.read_text())
        return found if isinstance(found, dict) else {}
    return {}


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file of JSON lines, but for lines that are not whole; nothing where there is no file."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        for line in file:
            with contextlib.suppress(ValueError):
                if isinstance(row := json.loads(line), dict):
                    yield row


# ------------------------------------------------------------------------------------------- numbers


def read_curves(path: Path) -> Curves:
    """Return the curves of ``metrics.jsonl``: over training batches where rows tell them, else over their steps."""
    curves: Curves = {}
    for row in json_lines(path):
        place = row.get("total_steps", row.get("step"))
        if not _is_finite(place):
            continue
        phase, values = str(row.get("phase", "")), row.get("values")
        rates = {key: value for key, value in row.items() if key == "lr" or key.startswith("lr/")}
        for key, value in {**(values if isinstance(values, dict) else {}), **rates}.items():
            if value is None or isinstance(value, int | float):
                places, numbers = curves.setdefault((phase, key), (array("d"), array("d")))
                places.append(place)
                numbers.append(value if _is_finite(value) else math.nan)
    return curves


def _is_finite(value: Any) -> bool:
    """Tell whether a value is a number that can be drawn: not infinite, and not on the edge of float64 either."""
    return isinstance(value, int | float) and abs(value) < _LARGEST


# ------------------------------------------------------------------------------------------- logs


def read_notes(logs: Path) -> list[Note]:
    """Return the last warnings, errors and ends of all logs in a folder, the oldest first."""
    found = [note for path in logs.glob("*.log") for note in _notes(path)]
    return sorted(found, key=lambda note: note.time)[-_MOST_NOTES:]


def _notes(path: Path) -> Iterator[Note]:
    time, level, text = "", "", ""
    for line in [*_lines(path), "0000-00-00 00:00:00 | END | "]:
        if (start := _LINE.match(line)) is None:
            text += f"\n{line}" if len(text) < _LONGEST_NOTE else ""
            continue
        if level in _NOTED or (level == "SUCCESS" and _ENDS.match(text)):
            yield Note(time, level, text)
        time, level, text = start.groups()


def _lines(path: Path) -> Iterator[str]:
    with contextlib.suppress(OSError), path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            yield line.rstrip("\n")
