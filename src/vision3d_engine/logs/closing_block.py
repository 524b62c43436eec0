"""The last word of a log: what a person asks first when a run or a test has ended."""

from collections.abc import Mapping

# Numbers and files of one kind that are listed; more of them are counted.
_MOST = 12


def closing_block(title: str, lines: Mapping[str, str]) -> str:
    """Return a title and a table of two columns."""
    width = max(map(len, lines), default=0)
    return "\n".join([title, *(f"    {name:<{width}}  {text}" for name, text in lines.items())])


def first_of(lines: Mapping[str, str]) -> dict[str, str]:
    """Return the first lines of one kind, and how many more there are."""
    shown = dict(list(lines.items())[:_MOST])
    return shown if len(lines) <= _MOST else shown | {"...": f"and {len(lines) - _MOST} more"}
