"""Tests of several runs side by side, read from what they have left in their folders."""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from vision3d_engine.core.columns import aligned
from vision3d_engine.core.errors import ConfigError, ResultError, did_you_mean, listed
from vision3d_engine.results.names import ROWS, SUMMARY, named, tests_in
from vision3d_engine.results.statistics import CaseStatistics

Table = list[list[str]]
"""Rows of cells, the first of them the head."""

_NONE, _ALL = "-", "(all)"


class RunTest(NamedTuple):
    """A test of a run, by its name, which may be empty."""

    run: Path
    name: str

    def file(self, kind: str) -> Path:
        """Return where its file of a kind lies, such as ``results.json``."""
        return self.run / named(kind, self.name)


def compare(runs: Sequence[Path], per: str | None = None, numbers: Sequence[str] = (), markdown: bool = False) -> str:
    """Return a table of the numbers of runs, in each of all tests, or of one: ``RUN:NAME``.

    Without ``per`` a number has a row, and a test a column: the summaries of the tests, and so the numbers of classes
    too. With it a group of cases has a row, and each number of each test a column: their means.

    Args:
        runs: run folders, ``RUN`` or ``RUN:NAME``.
        per: a regular expression of case names, whose first group names the group.
        numbers: which numbers to show; all by default.
        markdown: return it as Markdown.

    Raises:
        ResultError: for a run without results or without this test, and a number that none has.
        ConfigError: for a pattern that is none, or matches no case.
    """
    tests = [test for run in runs for test in tests_of(run)]
    titles = titles_of_tests(tests)
    found = dict(zip(titles, [_summary(test) if per is None else _groups(test, per) for test in tests], strict=True))
    if per is not None:
        _refuse_of_whole(numbers, tests, found.values())
    table = _by_number(found, numbers) if per is None else _by_group(found, numbers)
    return as_markdown(table) if markdown else as_text(table)


def tests_of(run: Path) -> list[RunTest]:
    """Return all tests of a run, or the one that ``RUN:NAME`` names, ``RUN:`` the one without a name.

    Raises:
        ResultError: when there is none.
    """
    if run.is_file():
        raise ResultError(f"'{run}' is a file: name the run folder, '{run.parent}'")
    folder, colon, name = str(run).rpartition(":")
    if run.is_dir() or not colon:
        if found := [RunTest(run, each) for each in tests_in(run)]:
            return found
        raise ResultError(_NO_TEST.format(run))
    known = tests_in(Path(folder))
    if name in known:
        return [RunTest(Path(folder), name)]
    message = f"'{folder}' has no test '{name}'{did_you_mean(name, known)} (there are: {listed(map(repr, known))}). "
    raise ResultError(message + "Name one of them, or the folder alone for all")


_NO_TEST = (
    "'{}' has no results.json: no test has ended there. Run the test of this run, or name the folder that is its "
    "exp.output_dir"
)


def titles_of_tests(tests: Sequence[RunTest]) -> list[str]:
    """Return titles of runs, with the name of the test behind a colon where it has one.

    Raises:
        ResultError: for a test that is there twice.
    """
    runs = list(dict.fromkeys(test.run for test in tests))
    titles = dict(zip(runs, titles_of(runs), strict=True))
    found = [f"{titles[test.run]}:{test.name}" if test.name else titles[test.run] for test in tests]
    if twice := [title for title, count in Counter(found).items() if count > 1]:
        raise ResultError(f"a test is named twice: {listed(twice)}; name each once")
    return found


def titles_of(runs: Sequence[Path]) -> list[str]:
    """Return the shortest ends of paths that differ: names of folders, and as many folders around them as it takes."""
    parts = [run.absolute().parts for run in runs]
    for depth in range(1, max(map(len, parts), default=0) + 1):
        titles = ["/".join(part[-depth:]) for part in parts]
        if len(set(titles)) == len(titles):
            return titles
    raise ResultError(f"a run is named twice: {listed(runs)}; name each once")


def _summary(test: RunTest) -> dict[str, Any]:
    return json.loads(test.file(SUMMARY).read_text())["summary"]


def _groups(test: RunTest, per: str) -> dict[str, dict[str, float]]:
    """Return the means of the cases of a test in each group, and of all together."""
    path = test.file(ROWS)
    if not path.is_file():
        raise ResultError(f"'{path}' is missing: the table of the test was removed. Run the test once more")
    groups, together = {}, CaseStatistics()
    for case in cases_of(path):
        if (group := group_of(case["name"], per)) is not None:
            groups.setdefault(group, CaseStatistics()).add(case)
            together.add(case)
    if not groups:
        message = (
            f"--per '{per}' matches no case of '{test.run}' (they are called {_first_names(path)}). Give a regular "
        )
        raise ConfigError(f"{message}expression with a group, of a part of their names, as in '^(.*)/'")
    return {name: group.means() for name, group in groups.items()} | {_ALL: together.means()}


def _refuse_of_whole(numbers: Sequence[str], tests: Sequence[RunTest], found: Any) -> None:
    """Raise `ResultError` for a number of summaries that no case has."""
    of_cases = list(dict.fromkeys(key for groups in found for group in groups.values() for key in group))
    of_whole = {key for test in tests if test.file(SUMMARY).is_file() for key in _summary(test)}
    for name in numbers:
        if name in of_whole and name not in of_cases:
            message = f"'{name}' is a number of the whole set, which single cases do not have, so there is none of a "
            raise ResultError(f"{message}group. Leave out --per, or name one of cases ({listed(of_cases)})")


def _first_names(path: Path) -> str:
    return listed(case["name"] for case in islice(cases_of(path), 5))


def group_of(name: str, per: str) -> str | None:
    """Return the group of a case by its name, None for one that the pattern does not match.

    Raises:
        ConfigError: for a pattern that is none, or has no group.
    """
    try:
        found = re.search(per, name)
        return None if found is None else found.group(1)
    except (re.error, IndexError) as error:
        message = f"--per '{per}': {error}. Give a regular expression with a group, as in '^(.*)/' for what stands "
        raise ConfigError(f"{message}before the last '/' of a name") from error


def cases_of(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the cases of a ``results.jsonl`` in whole lines, each with weights, and numbers where JSON has none."""
    with path.open("rb") as rows:
        for row in filter(None, map(_parsed, rows)):
            values = {key: _as_number(value) for key, value in row["values"].items()}
            yield {"weights": 1, **row, "values": values}


def _parsed(text: bytes) -> dict[str, Any] | None:
    """Return a row, or None for what is none, or not whole."""
    try:
        row = json.loads(text)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _as_number(value: Any) -> float:
    """Return a number that `results.table.finite` has made data of JSON."""
    return math.nan if value is None else float(value) if isinstance(value, str) else value


def _by_number(found: Mapping[str, Mapping[str, Any]], numbers: Sequence[str]) -> Table:
    rows = [[key, *(number_text(run.get(key)) for run in found.values())] for key in _chosen(found.values(), numbers)]
    return [["", *found], *rows]


def _by_group(found: Mapping[str, Mapping[str, Mapping[str, float]]], numbers: Sequence[str]) -> Table:
    keys = _chosen((group for run in found.values() for group in run.values()), numbers)
    groups = dict.fromkeys(group for run in found.values() for group in run if group != _ALL)
    head = ["", *(f"{key} {run}" if len(found) > 1 else key for key in keys for run in found)]
    rows = [
        [group, *(number_text(run.get(group, {}).get(key)) for key in keys for run in found.values())]
        for group in (*groups, _ALL)
    ]
    return [head, *rows]


def _chosen(runs: Any, numbers: Sequence[str]) -> list[str]:
    """Return the names of numbers to show.

    Raises:
        ResultError: for one that no run has.
    """
    known = list(dict.fromkeys(key for run in runs for key in run))
    for name in numbers:
        if name not in known:
            message = f"no run has the number '{name}'{did_you_mean(name, known)} (there are: {listed(known)})"
            raise ResultError(message)
    return list(numbers) or known


def number_text(value: Any) -> str:
    """Return a number with four digits; a dash where there is none, and of a summary where it is NaN."""
    if value is None:
        return _NONE
    return str(value) if isinstance(value, int | str) else f"{value:.4g}"


def as_text(table: Table) -> str:
    """Return a table in columns, numbers to the right."""
    return "\n".join(map(str.rstrip, aligned(table)))


def as_markdown(table: Table) -> str:
    """Return a table in Markdown."""
    head, *rows = [[cell.replace("|", "\\|") for cell in row] for row in table]
    rule = ["---", *("---:" for _ in head[1:])]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *rows))
