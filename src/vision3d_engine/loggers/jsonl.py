"""Numbers as JSON lines: one object a line, readable by ``grep``, pandas and other programs."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vision3d_engine.core.files import GrowingFile


class JsonLinesWriter:
    """Appends rows to a file; rows are on their way to the disk when `rows` returns."""

    def __init__(self, path: str | Path) -> None:
        self._file = GrowingFile(path)

    def rows(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append objects; nan and infinity, which JSON does not have, become null.

        Raises:
            OSError: when the disk is full; then none of them is there.
        """
        self._file.add("".join(_as_line(row) for row in rows).encode())

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
