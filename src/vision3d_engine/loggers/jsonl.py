"""Numbers as JSON lines: one object a line, readable by ``grep``, pandas and other programs."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


class JsonLinesWriter:
    """Appends rows to a file; rows are on their way to the disk when `rows` returns."""

    def __init__(self, path: str | Path) -> None:
        self._file = Path(path).open("a", encoding="utf-8")  # noqa: SIM115  open for the whole run

    def rows(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append objects; nan and infinity, which JSON does not have, become null."""
        self._file.write("".join(_as_line(row) for row in rows))
        self._file.flush()

    def end(self) -> int:
        """Return the size of the file in bytes, with everything that was written so far."""
        return self._file.tell()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _as_line(row: Mapping[str, Any]) -> str:
    try:
        return json.dumps(row, allow_nan=False) + "\n"
    except ValueError:
        return json.dumps(_finite(row)) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
