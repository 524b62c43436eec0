"""The report on a run: one page of HTML that needs no network and no other file."""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vision3d_engine.core.errors import EngineError, FolderError
from vision3d_engine.core.files import absolute_path, atomic_write
from vision3d_engine.core.settings import Settings
from vision3d_engine.report.cases import By, Case, Cases, noted_order
from vision3d_engine.report.charts import charts_of, classes_of, figure
from vision3d_engine.report.markup import Markup, element, joined, table
from vision3d_engine.report.panels import Panel, panels_of
from vision3d_engine.report.rendering import data_uri, render
from vision3d_engine.report.run_data import Note, RunData, read_run
from vision3d_engine.report.style import STYLE
from vision3d_engine.results.comparison import number_text

PAGE = "report.html"
_MOST_CHARTS = 60
_STATISTICS = ("cases", "mean", "median", "lower_quartile", "upper_quartile")
_SAVE_RESULT = 'self.save_result("cloud", {"points": ..., "label": ..., "prediction": ...})'


def write_report(
    run: Path, target: Path | None = None, by: str | None = None, worst: str | None = None, count: int = 8
) -> Path:
    """Write the report on a run, also on one that has not ended, and return its path.

    Args:
        run: the run folder.
        target: the file to write; ``report.html`` in the run folder by default.
        by: the number by which cases are the worst (default: what the tester's ``worst_by`` says).
        worst: whether its ``"largest"`` or its ``"smallest"`` are the worst (default: likewise, else the largest).
        count: how many cases are shown.

    Raises:
        FolderError: when no run has worked there, or the file cannot be written.
        ResultError: for a number that no case has.
    """
    data = read_run(absolute_path(run))
    cases = Cases(data.folder)
    text = _page(data, _test(data, cases, noted_order(data.summary, by, worst), count))
    path = data.folder / PAGE if target is None else absolute_path(target)
    try:
        with atomic_write(path) as file:
            file.write(text.encode())
    except OSError as error:
        message = f"cannot write '{path}': {error.strerror or error}. Name another file by --output"
        raise FolderError(message) from error
    return path


def _page(data: RunData, test: Markup) -> str:
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
    body = joined(title, _notes(data.notes), test, _curves(data), _settings(data.settings), _environment(data))
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


def _test(data: RunData, cases: Cases, by: By | None, count: int) -> Markup:
    if not cases.count:
        return _section("Test", _hint("no case has been tested here"), id="test")
    unfinished = "" if data.summary else f"The test has not ended: {cases.count:,} cases are done."
    parts = [_hint(unfinished), *_summary(data.summary), _worst(cases, by, count)]
    return _section("Test", *parts, id="test")


def _summary(summary: Mapping[str, Any]) -> Iterator[Markup]:
    """Yield means, quartiles of cases, and of which checkpoint they are."""
    if checkpoint := summary.get("checkpoint"):
        yield element("p", f"{summary.get('cases', 0):,} cases, weights of ", element("code", checkpoint))
    statistics = summary.get("statistics") or {}
    rows = [[key, *(_cell(row.get(name)) for name in _STATISTICS)] for key, row in statistics.items()]
    rest = [[key, "", _cell(value)] for key, value in (summary.get("summary") or {}).items() if key not in statistics]
    if rows or rest:
        yield table(["", *(name.replace("_", " ") for name in _STATISTICS)], [*rows, *rest], id="numbers")


def _cell(value: Any) -> str:
    return number_text(value) if value is None or isinstance(value, int | float) else str(value)


def _worst(cases: Cases, by: By | None, count: int) -> Markup:
    chosen = cases.sorted(by, count)
    if by is None:
        title, hint = "First cases", "For the worst ones set worst_by in the tester, or give --by NUMBER."
    else:
        title, hint = f"Worst cases: {by[1]} {by[0]} first", ""
    pictures = [_case(cases, case, by) for case in chosen]
    if not any(cases.files(case.name) for case in chosen):
        hint += f" To see them here, save what they are made of in eval_step: {_SAVE_RESULT}"
    return joined(element("h3", title), _hint(hint), element("div", *pictures, id="cases"))


def _case(cases: Cases, case: Case, by: By | None) -> Markup:
    number = "" if by is None else f"{by[0]}: {number_text(case.number)}"
    head = element("h4", case.name, element("span", number))
    try:
        pictures = [_picture(panel, case.name) for panel in panels_of(cases.arrays(case.name))]
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
    shown = _section("Curves", element("div", *map(figure, charts[:_MOST_CHARTS]), class_="charts"), *more, id="curves")
    head, *rows = classes_of(data.curves)
    return joined(shown, _section("Classes", table(head, [list(row) for row in rows], id="classes"))) if rows else shown


# ------------------------------------------------------------------------------------------- settings


def _settings(settings: Mapping[str, Any]) -> Markup:
    """Return what differs from the engine's defaults, or has none, and folded in what does not."""
    found, defaults = dict(_flat(settings)), dict(_flat(Settings().model_dump(mode="json")))
    if not found:
        return _section("Settings", _hint("no config.yaml was found"), id="settings")
    chosen = {key: value for key, value in found.items() if key not in defaults or value != defaults[key]}
    rest = {key: value for key, value in found.items() if key not in chosen}
    folded = element("details", element("summary", f"{len(rest)} settings as they are by default"), _pairs(rest))
    return _section("Settings", element("div", _pairs(chosen), id="chosen"), folded, id="settings")


def _environment(data: RunData) -> Markup:
    return _section("Environment", _pairs(dict(_flat(data.environment))), id="environment")


def _pairs(values: Mapping[str, Any]) -> Markup:
    return table([], [[key, element("code", value)] for key, value in values.items()], class_="pairs")


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
