"""The report on a run: one page of HTML that needs no network and no other file."""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vision3d_engine.core.errors import EngineError, FolderError, listed
from vision3d_engine.core.files import absolute_path, atomic_write
from vision3d_engine.core.settings import Settings
from vision3d_engine.report.cases import By, Case, Cases, asked_test, noted_order
from vision3d_engine.report.charts import charts_of, classes_of, figure, names_of_classes
from vision3d_engine.report.markup import Markup, element, joined, table
from vision3d_engine.report.panels import Panel
from vision3d_engine.report.rendering import data_uri, render
from vision3d_engine.report.run_data import Note, RunData, read_run
from vision3d_engine.report.style import STYLE
from vision3d_engine.results.comparison import number_text
from vision3d_engine.results.sample_files import safe_name

_MOST_CHARTS = 60
_STATISTICS = ("cases", "mean", "median", "lower_quartile", "upper_quartile")
_SAVE_RESULT = 'self.save_result("cloud", {"points": ..., "label": ..., "prediction": ...})'


def write_report(
    run: Path, target: Path | None = None, by: str | None = None, worst: str | None = None, count: int = 8
) -> Path:
    """Write the report on a run, also on one that has not ended, and return its path.

    Args:
        run: the run folder, or ``RUN:NAME`` for one of several tests in it.
        target: the file to write; ``report.html``, or ``report-NAME.html``, in the run folder by default.
        by: the number by which cases are the worst (default: what the tester's ``worst_by`` says).
        worst: whether its ``"largest"`` or its ``"smallest"`` are the worst (default: likewise, else the largest).
        count: how many cases are shown.

    Raises:
        FolderError: when no run has worked there, or the file cannot be written.
        ResultError: for a number that no case has.
    """
    test = asked_test(run)
    data, cases = read_run(test), Cases(test)
    text = _page(data, _cases(data, cases, noted_order(data.summary, by, worst), count))
    own = f"report-{safe_name(test.name)}.html" if test.name else "report.html"
    path = data.folder / own if target is None else absolute_path(target)
    try:
        with atomic_write(path) as file:
            file.write(text.encode())
    except OSError as error:
        message = f"cannot write '{path}': {error.strerror or error}. Name another file by --output"
        raise FolderError(message) from error
    return path


def _page(data: RunData, worst: Markup) -> str:
    head = joined(
        element("title", f"{data.name}: report"),
        Markup('<meta charset="utf-8"><meta name="viewport" content="width=device-width">'),
        Markup('<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '),
        Markup("style-src 'unsafe-inline'; img-src data:\">"),
        element("style", Markup(STYLE)),
    )
    started, made = data.environment.get("time"), time.strftime("%Y-%m-%d %H:%M")
    below = [str(data.folder), f"started {started}" if started else "", f"report of {made}"]
    title = element("header", element("h1", data.name), element("p", " · ".join(filter(None, below))))
    numbers = [_notes(data.notes), _summary(data), _classes(data), _curves(data)]
    body = joined(title, *numbers, worst, _settings(data.settings), _environment(data))
    return f"<!doctype html>\n{element('html', element('head', head), element('body', body), lang='en')}\n"


def _section(title: str, *children: Markup, **attributes: str) -> Markup:
    return element("section", element("h2", title), *children, **attributes)


def _hint(text: str) -> Markup:
    return element("p", text, class_="hint")


# ------------------------------------------------------------------------------------------- notes


def _notes(notes: list[Note]) -> Markup:
    """Return how the run has ended, if it has, and what it has warned of."""
    shown = [element("li", element("time", note.time), element("pre", note.text), class_=note.level) for note in notes]
    if not any(note.level == "SUCCESS" for note in notes):
        shown.append(element("li", element("pre", "neither a run nor a test has ended here yet")))
    return _section("Notes", element("ul", *shown), id="notes")


# ------------------------------------------------------------------------------------------- test


def _summary(data: RunData) -> Markup:
    """Return what has come out of a test that has ended: means, quartiles of cases, of which checkpoint."""
    summary, title = data.summary, f"Test {data.test}".strip()
    others = f"Other tests of this run, as in report RUN:NAME: {listed(data.others)}."
    hints = [_hint(others)] if data.others else []
    if not summary:
        return _section(title, _hint("no test has ended here"), *hints, id="test")
    weights = joined(", weights of ", element("code", summary.get("checkpoint"))) if summary.get("checkpoint") else ""
    statistics, found = summary.get("statistics") or {}, summary.get("summary") or {}
    rows = [[key, *(_cell(row.get(name)) for name in _STATISTICS)] for key, row in statistics.items()]
    rest = found.keys() - statistics.keys() - names_of_classes(found)
    rows += [[key, "", _cell(value), "", "", ""] for key, value in found.items() if key in rest]
    head = ["", *(name.replace("_", " ") for name in _STATISTICS)]
    count = element("p", f"{summary.get('cases', 0):,} cases", weights)
    return _section(title, count, table(head, rows, id="numbers"), *hints, id="test")


def _classes(data: RunData) -> Markup:
    """Return the last numbers of single classes of each phase; nothing where there are none."""
    last = {place: y[-1] for place, (_, y) in data.curves.items()}
    found = {("test", key): value for key, value in (data.summary.get("summary") or {}).items()}
    head, *rows = classes_of(last | found)
    shown = _section("Classes", table(head, [list(row) for row in rows], id="classes"))
    return shown if rows else joined()


def _cell(value: Any) -> str:
    return number_text(value) if value is None or isinstance(value, int | float) else str(value)


def _cases(data: RunData, cases: Cases, by: By | None, count: int) -> Markup:
    """Return the worst cases with pictures of what the test has saved of them; nothing without a test."""
    chosen, hints = cases.sorted(by, count) if cases.count else [], []
    if not chosen:
        return joined()
    if not data.summary:
        hints.append(f"The test has not ended: {cases.count:,} cases are done.")
    if by is None:
        hints.append("For the worst ones set worst_by in the tester, or give --by NUMBER.")
    if not any(cases.files(case.name) for case in chosen):
        hints.append(f"To see them, save what they are made of in eval_step: {_SAVE_RESULT}")
    title = "First cases" if by is None else f"Worst cases: {by[1]} {by[0]} first"
    shown = element("div", *(_case(cases, case, by) for case in chosen), class_="cases")
    return _section(title, *map(_hint, hints), shown, id="cases")


def _case(cases: Cases, case: Case, by: By | None) -> Markup:
    number = "" if by is None else f"{by[0]}: {number_text(case.number)}"
    head = element("h4", case.name, element("span", number))
    try:
        pictures = [_picture(panel, case.name) for panel in cases.panels(case.name)]
    except EngineError as error:  # a case that cannot be shown costs its pictures
        pictures = [_hint(f"no picture: {error}")]
    return element("article", head, element("div", *pictures, class_="panels"))


def _picture(panel: Panel, name: str) -> Markup:
    caption = element("figcaption", panel.title)
    image = element("img", src=data_uri(render(panel)), alt=f"{panel.title} of {name}")
    return element("figure", Markup(image.removesuffix("</img>")), caption)


# ------------------------------------------------------------------------------------------- numbers


def _curves(data: RunData) -> Markup:
    charts = charts_of(data.curves)
    if not charts:
        return _section("Curves", _hint("no number has been written yet"), id="curves")
    left_out = len(charts) - _MOST_CHARTS
    more = [_hint(f"{left_out} more charts are left out; TensorBoard has all of them")] if left_out > 0 else []
    return _section("Curves", element("div", *map(figure, charts[:_MOST_CHARTS]), class_="charts"), *more, id="curves")


# ------------------------------------------------------------------------------------------- settings


def _settings(settings: Mapping[str, Any]) -> Markup:
    """Return what differs from the engine's defaults, or has none, and folded in what does not."""
    found, defaults = dict(_flat(settings)), dict(_flat(Settings().model_dump(mode="json")))
    if not found:
        return _section("Settings", _hint("no config.yaml was found; a training writes it"), id="settings")
    chosen = {key: value for key, value in found.items() if key not in defaults or value != defaults[key]}
    rest = {key: value for key, value in found.items() if key not in chosen}
    folded = element("details", element("summary", f"{len(rest)} settings as they are by default"), _pairs(rest))
    return _section("Settings", element("div", _pairs(chosen), id="chosen"), folded, id="settings")


def _environment(data: RunData) -> Markup:
    if not data.environment:
        return _section("Environment", _hint("no env.json was found; a training writes it"), id="environment")
    return _section("Environment", _pairs(dict(_flat(data.environment))), id="environment")


def _pairs(values: Mapping[str, Any]) -> Markup:
    return table([], [[key, element("code", value)] for key, value in values.items()], class_="pairs")


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
