"""The cases of a test: sorted by a number, each with the files that the test has left of it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from vision3d_engine.core.errors import ResultError
from vision3d_engine.core.files import absolute_path
from vision3d_engine.report.panels import MOST_PANELS, Panel, panels_of
from vision3d_engine.results.comparison import RunTest, cases_of, tests_of
from vision3d_engine.results.folder import ResultsFolder
from vision3d_engine.results.journal import Line
from vision3d_engine.results.names import FOLDER, ROWS, SUMMARY, tests_in
from vision3d_engine.results.sample_files import FORMATS, Arrays, read_sample, safe_name
from vision3d_engine.results.statistics import what_is_wrong_with, worst_cases
from vision3d_engine.results.table import CaseTable

By = tuple[str, str]
"""A number's name, and whether the ``"largest"`` or the ``"smallest"`` is the worst."""


class Case(NamedTuple):
    """A case and the number by which it was chosen; None where cases are in the order of the data set."""

    name: str
    number: float | None


class Cases:
    """The cases of a run's test, also of one that has not ended.

    Args:
        test: which test of which run.
    """

    def __init__(self, test: RunTest) -> None:
        self._path, self._results = test.file(ROWS), ResultsFolder(test.run, test.name)
        self.numbers = list(dict.fromkeys(key for case in self for key in case["values"]))
        self.count = sum(1 for _ in self)

    def __iter__(self) -> Iterator[Line]:
        """Yield the cases in the order of the data set."""
        yield from cases_of(self._path) if self._path.is_file() else CaseTable(self._results.progress)

    def sorted(self, by: By | None, count: int) -> list[Case]:
        """Return the worst cases, the worst first; without ``by`` the first ones.

        Raises:
            ResultError: for a number that no case has.
        """
        if by is None:
            return [Case(case["name"], None) for case, _ in zip(self, range(count), strict=False)]
        if wrong := what_is_wrong_with(by, self.numbers):
            raise ResultError(wrong.replace("worst_by", "--by", 1))
        return [Case(*found) for found in worst_cases(self, by, count)]

    def values(self, name: str) -> dict[str, float]:
        """Return all numbers of a case."""
        return next((case["values"] for case in self if case["name"] == name), {})

    def files(self, name: str) -> list[Path]:
        """Return the files of a case."""
        kinds = (self._results.path / kind for kind in self._results.kinds())
        paths = (kind / f"{safe_name(name)}.{suffix}" for kind in kinds for suffix in FORMATS)
        return [path for path in paths if path.is_file()]

    def panels(self, name: str) -> list[Panel]:
        """Return what is to be seen of a case: of all its files together, or of each where names clash.

        Raises:
            ResultError: for a file that cannot be read.
            DataError: for entries that cannot be shown.
        """
        found = {path.parent.name: read_sample(path) for path in self.files(name)}
        together: Arrays = {key: array for arrays in found.values() for key, array in arrays.items()}
        if len(together) == sum(map(len, found.values())):
            return panels_of(together)
        shown = [(kind, panels_of(arrays)) for kind, arrays in found.items()]
        titled = [_titled(kind, panel, len(panels)) for kind, panels in shown for panel in panels]
        return titled[:MOST_PANELS]


def _titled(kind: str, panel: Panel, count: int) -> Panel:
    return panel._replace(title=kind if count == 1 else f"{kind}: {panel.title}")


def asked_test(run: Path) -> RunTest:
    """Return the test that ``RUN:NAME`` names, ended or not; of ``RUN`` the one without a name, else the first.

    Raises:
        ResultError: when the run has no such test.
    """
    folder, colon, name = str(run).rpartition(":")
    if run.is_dir() or not colon:
        return RunTest(absolute_path(run), next(iter(tests_in(run)), ""))
    test = RunTest(absolute_path(folder), name)
    return test if test.file(FOLDER).is_dir() or test.file(SUMMARY).is_file() else tests_of(run)[0]


def noted_order(summary: dict[str, Any], by: str | None, worst: str | None) -> By | None:
    """Return by what cases are sorted: as is wished, else as the tester's ``worst_by`` says; None without both."""
    noted = summary.get("worst_by")
    number, order = noted if isinstance(noted, list) and len(noted) == 2 else (None, None)  # noqa: PLR2004
    chosen = by or number
    return None if chosen is None else (chosen, worst or (order if chosen == number else None) or "largest")
