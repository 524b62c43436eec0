"""Numbers as JSON lines: one object a line, readable by ``grep``, pandas and other programs."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class JsonLinesWriter:
    """Appends rows to a file; a row is on its way to the disk when `row` returns."""

    def __init__(self, path: str | Path) -> None:
        self._file = Path(path).open("a", encoding="utf-8", buffering=1)  # noqa: SIM115  open for the whole run

    def row(self, fields: Mapping[str, Any]) -> None:
        """Append one object; nan and infinity, which JSON does not have, become null."""
        self._file.write(json.dumps(_finite(fields)) + "\n")

    def end(self) -> int:
        """Return the size of the file in bytes, with everything that was written so far."""
        self._file.flush()
        return self._file.tell()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
