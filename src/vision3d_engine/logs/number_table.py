"""Numbers of single classes, as a table below a log line."""

from collections.abc import Mapping

from vision3d_engine.core.columns import aligned
from vision3d_engine.logs.log_line import get_print_format


def number_table(numbers: Mapping[tuple[str, str], float]) -> str:
    """Return an aligned table of numbers by (column, row), in the order in which these first come; "" for none."""
    columns, rows = (dict.fromkeys(each[place] for each in numbers) for place in (0, 1))
    if not numbers:
        return ""
    texts = {place: f"{number:{get_print_format(number)}}" for place, number in numbers.items()}
    lines = [["", *columns], *([row, *(texts.get((column, row), "") for column in columns)] for row in rows)]
    return "\n".join(f"    {line}".rstrip() for line in aligned(lines))
