"""The cases of a test as a table in the order of the data set, put together from the journals of all attempts."""

import contextlib
import csv
import io
import json
import math
from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from vision3d_engine.core.errors import ResultError, listed
from vision3d_engine.core.files import atomic_write
from vision3d_engine.results.journal import Journals, Line, Where, parsed
from vision3d_engine.results.names import ROWS, SUMMARY, TABLE, named
from vision3d_engine.results.statistics import CaseStatistics

_COLUMNS = ("index", "name")


class CaseTable:
    """Reads the cases in the order of the data set; of each only its place in the journals is kept in memory.

    Args:
        folder: where the journals lie.

    Attributes:
        keys: the names of all numbers, as they first come.
        batches: how many batches are done.
        skipped: how many batches and cases were left out.
    """

    def __init__(self, folder: Path) -> None:
        self._journals = Journals(folder)
        self.keys: dict[str, None] = {}
        self.batches = self.skipped = 0
        self._order = self._read_order()

    def __len__(self) -> int:
        return self._order.shape[0]

    def _read_order(self) -> np.ndarray:
        """Return where each case lies: file, offset of its line, place in it, and its index in the data set."""
        places = array("q")
        for where, line in self._journals:
            self.batches += 1
            self.skipped += line["skipped"]
            for number, case in enumerate(line["cases"]):
                index = -1 if case["index"] is None else case["index"]
                places.extend((*where, number, index, line["batch"]))
        found = np.frombuffer(places, dtype=np.int64).reshape(-1, 5) if places else np.empty((0, 5), np.int64)
        by = (2, 4) if (found[:, 3] < 0).any() else (2, 4, 3)  # the last one counts first
        found = found[np.lexsort([found[:, column] for column in by])]
        self._learn_keys(found)
        return found

    def _learn_keys(self, order: np.ndarray) -> None:
        for case in self._cases(order):
            self.keys |= dict.fromkeys(case["values"])

    def __iter__(self) -> Iterator[Line]:
        """Yield the cases, each with its index; where that is not known, its number."""
        return self._cases(self._order)

    def _cases(self, order: np.ndarray) -> Iterator[Line]:
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(path.open("rb")) for path in self._journals.paths]
            last, line = None, {}
            for number, (file, offset, place, index, _) in enumerate(order):
                if last != (where := Where(file, offset)):
                    last, line = where, _line_at(files[file], offset)
                yield line["cases"][place] | {"index": number if index < 0 else int(index)}


def _line_at(file: IO[bytes], offset: int) -> Line:
    file.seek(offset)
    line = parsed(file.readline())
    if line is None:
        raise OSError(f"the journal '{file.name}' has changed while it was read")
    return line


def write_table(output: Path, table: CaseTable, test: str = "") -> CaseStatistics:
    """Write ``results.jsonl`` and ``results.csv`` into a folder, a row a case, and return what the cases say together.

    Args:
        output: the run folder.
        table: the cases.
        test: the name of the test, which the files then have too.

    Raises:
        OSError: when the disk is full; former files stay.
    """
    statistics = CaseStatistics()
    with atomic_write(output / named(ROWS, test)) as rows, atomic_write(output / named(TABLE, test)) as columns:
        text = io.TextIOWrapper(columns, encoding="utf-8", errors="backslashreplace", newline="", write_through=True)
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*_COLUMNS, *table.keys])
        for case in table:
            statistics.add(case)
            rows.write(_as_row(case))
            writer.writerow([case["index"], case["name"], *(case["values"].get(key, "") for key in table.keys)])
        text.detach()
    return statistics


def _as_row(case: Line) -> bytes:
    row = {key: case[key] for key in (*_COLUMNS, "values")}
    weighs = {} if case["weights"] == 1 else {"weights": case["weights"]}
    return (json.dumps(finite(row | weighs)) + "\n").encode()


def finite(value: Any) -> Any:
    """Return data as JSON has them: None in place of NaN, and the texts "inf" and "-inf", as a CSV has them too."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if not isinstance(value, float) or math.isfinite(value):
        return value
    return None if math.isnan(value) else str(value)


def refuse_taken(values: Mapping[str, Any]) -> None:
    """Raise `ResultError` for a number with the name of a column that every table has."""
    if taken := [name for name in _COLUMNS if name in values]:
        message = f"eval_step returned a number '{taken[0]}', which is a column of results.csv already (it has "
        raise ResultError(f"{message}{listed(_COLUMNS)} of each case). Give the number another name")


def write_summary(output: Path, summary: Mapping[str, Any], test: str = "") -> None:
    """Write ``results.json``; with the name of a test ``results-NAME.json``."""
    with atomic_write(output / named(SUMMARY, test)) as file:
        file.write((json.dumps(finite(summary), indent=2) + "\n").encode())
