"""What is said of two runs, in columns."""

from collections.abc import Iterator, Sequence

from vision3d_engine.core.errors import listed, shortened
from vision3d_engine.diff.causes import likeliest_cause
from vision3d_engine.diff.findings import Findings
from vision3d_engine.diff.recorded import Recorded
from vision3d_engine.diff.rows import Row, shown_value
from vision3d_engine.diff.tables import FirstDifference, apart
from vision3d_engine.report.run_data import CONFIG

_MOST_ROWS = 8
# What is said of the steps before the first difference if none were compared, by whether there are any.
_UNKNOWN = {True: "", False: "; of the steps before nothing is known"}


def text_of(found: Findings, everything: bool) -> str:
    """Return all that is said.

    Args:
        found: the runs.
        everything: name every row, also what changes no number.
    """
    most = None if everything else _MOST_ROWS
    rows = found.rows
    sections = {"settings": rows.settings, "environment": rows.environment, "data": rows.data, "command": rows.command}
    parts = [*_heads(found)]
    for title, each in (sections | ({"without effect": rows.idle} if everything else {})).items():
        parts += ["", *_table(title, [_cells(row, everything) for row in each], most)] if each else []
    return "\n".join([*parts, "", *_numbers(found, most)])


def _heads(found: Findings) -> Iterator[str]:
    for name, each in (("A", found.a), ("B", found.b)):
        yield f"{name}  {each.run.folder}: {_extent(each)}"
    for name, each in (("A", found.a), ("B", found.b)):
        if each.missing:
            yield f"not compared: {listed(each.missing)} (missing or unreadable in {name})"
    if found.is_all_recorded and not any(found.rows[:3]):
        yield "settings, environment and data: no difference"


def _extent(run: Recorded) -> str:
    steps = sorted(run.steps)
    known = f"steps {steps[0]:,} to {steps[-1]:,}" if steps else "no steps"
    gap = steps[-1] - steps[0] + 1 - len(steps) if steps else 0
    return known + (f", {gap:,} missing" if gap else "") + run.end


def _table(
    title: str, cells: Sequence[tuple[str, ...]], most: int | None, heads: Sequence[str] = ("A", "B")
) -> list[str]:
    """Return rows in columns below a head, of many the first."""
    told = cells[:most]
    rows = [(title, *heads), *(("  " + row[0], *row[1:]) for row in told)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return lines + ([f"  and {len(cells) - len(told)} more (--all)"] if len(told) < len(cells) else [])


def _cells(row: Row, everything: bool) -> tuple[str, ...]:
    whole = {"widest": None} if everything else {}
    return row.name, *(shown_value(value, **whole) for value in (row.a, row.b))


# ------------------------------------------------------------------------------------------- numbers


def _numbers(found: Findings, most: int | None) -> Iterator[str]:
    """Yield whether numbers differ, where, what differed there, and why."""
    yield _verdict(found)
    yield from (f"  {line}" for line in _apart_only(found))
    if not found.differences:
        return
    yield ""
    cells = [(each.key, f"{each.step:,}", *_values(each), apart(each.a, each.b)) for each in found.differences]
    yield from _table("first difference", cells, most, ("step", "A", "B", "apart"))
    yield ""
    if found.step is not None:
        yield from _surroundings(found, found.step)
    yield f"likeliest cause: {likeliest_cause(found)}"


def _verdict(found: Findings) -> str:
    numbers, count = found.numbers, len(found.numbers.steps)
    what = "steps" if found.are_exact else "log lines (means, since single steps are not recorded)"
    if not count:
        return f"numbers: nothing to compare, since the runs have recorded no {_lacking(found)} in common"
    if found.step is None:
        known = f"numbers: no difference in {count:,} {what} that both have ({_range(numbers.steps)})"
        return known + ("" if found.are_same else ", but in validations")
    before = f"; until then the same bits ({found.before:,} compared)" if found.before else ""
    place = f"{'' if found.are_exact else 'the log line of '}step {found.step:,} on{_where(found, found.step)}"
    return f"numbers: differ from {place}{before or _UNKNOWN[found.step == 1]}"


def _lacking(found: Findings) -> str:
    has_names = found.numbers.only_a or found.numbers.only_b
    return "number of the same name" if has_names else "step"


def _range(steps: Sequence[int]) -> str:
    return f"{steps[0]:,} to {steps[-1]:,}"


def _where(found: Findings, step: int) -> str:
    """Return epoch and iteration of a step, of both runs where these are not the same."""
    known = [run.interval(step) for run in (found.a, found.b)]
    places = [f"epoch {each.epoch}, iteration {step - each.before:,}" for each in known if each]
    return f" ({'; '.join(dict.fromkeys(places))})" if places else ""


def _apart_only(found: Findings) -> Iterator[str]:
    for name, keys in (
        ("A", [*found.numbers.only_a, *found.validations.only_a]),
        ("B", [*found.numbers.only_b, *found.validations.only_b]),
    ):
        if keys:
            yield f"only {name} has {listed(keys)}"


def _values(each: FirstDifference) -> Iterator[str]:
    yield from ("-" if value is None else repr(value) for value in (each.a, each.b))


def _surroundings(found: Findings, step: int) -> Iterator[str]:
    """Yield what differed in the step: batch, rate, randomness."""
    yield f"batch   {_batch(found)}"
    yield f"rate    {_rate(found, step)}"
    yield f"random  {_random(found)}"


def _batch(found: Findings) -> str:
    unknown = [f"{name}: {order.unknown}" for name, order in zip("AB", found.orders, strict=True) if order.unknown]
    if unknown:
        return f"samples are not known ({listed(unknown)})"
    a, b = ("unknown" if samples is None else shortened(samples) for samples in found.batches)
    return f"other samples: {a} in A; {b} in B" if found.is_other_batch else f"the same samples: {a}"


def _rate(found: Findings, step: int) -> str:
    if not found.rates.steps:
        return "not known: the runs have no log line in common"
    if (first := found.rate) is not None:
        return f"{first.key} differs at the log line of step {first.step:,}: {first.a!r} and {first.b!r}"
    near = [each for each in found.rates.steps if each <= step]
    later = next((each for each in found.rates.steps if each >= step), None)
    return f"the same up to the log line of step {near[-1] if later is None and near else later:,}"


def _random(found: Findings) -> str:
    if not (found.a.run.settings and found.b.run.settings):
        return f"not known without {CONFIG}"
    seeds = found.rows.named("exp.seed")
    return f"another seed: {listed(seeds)}" if seeds else "what samples and steps draw follows from the same seed"
