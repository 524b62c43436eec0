"""The table of a test, from journals of several attempts and processes."""

import csv
import json
import math

from vision3d_engine.results.journal import Journal, Journals
from vision3d_engine.results.table import CaseTable, write_summary, write_table


def line(batch, *cases, skipped=0):
    named = [{"name": f"n{index}", "index": index, "values": values, "weights": 1} for index, values in cases]
    return {"batch": batch, "opened": len(cases) + skipped, "skipped": skipped, "files": [], "cases": named}


def journal(folder, attempt, rank, *lines):
    made = Journal(folder, attempt, rank)
    made.add(lines)
    made.close()
    return made.path


def test_rows_are_in_the_order_of_the_data_set_whoever_has_done_them(tmp_path):
    journal(tmp_path, 1, 0, line(2, (0, {"a": 1.0}), (5, {"a": 2.0})), line(0, (3, {"a": 3.0})))
    journal(tmp_path, 1, 1, line(1, (4, {"b": 4.0})))
    journal(tmp_path, 2, 0, line(3, (1, {"a": 5.0, "b": 6.0}), skipped=1))
    table = CaseTable(tmp_path)
    statistics = write_table(tmp_path, table)
    assert (table.batches, table.skipped, len(table)) == (4, 1, 5)
    rows = [json.loads(text) for text in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [row["index"] for row in rows] == [0, 1, 3, 4, 5]
    assert rows[1] == {"index": 1, "name": "n1", "values": {"a": 5.0, "b": 6.0}}
    with (tmp_path / "results.csv").open() as file:
        assert list(csv.reader(file))[:4] == [
            ["index", "name", "a", "b"],
            ["0", "n0", "1.0", ""],
            ["1", "n1", "5.0", "6.0"],
            ["3", "n3", "3.0", ""],
        ]
    assert statistics.means() == {"a": 11 / 4, "b": 5.0}


def test_a_line_that_is_not_whole_counts_as_not_written_and_a_batch_counts_once(tmp_path):
    path = journal(tmp_path, 1, 0, line(0, (0, {"a": 1.0})), line(1, (1, {"a": 2.0})))
    path.write_bytes(path.read_bytes()[:-9])
    assert Journals(tmp_path).done() == {0: 1}
    journal(tmp_path, 2, 0, line(1, (1, {"a": 3.0})))
    journal(tmp_path, 3, 0, line(0, (0, {"a": 9.0})))
    assert [case["values"]["a"] for case in CaseTable(tmp_path)] == [1.0, 3.0]
    assert Journals(tmp_path).attempts == 3


def test_without_known_indices_rows_are_numbered_in_the_order_of_batches(tmp_path):
    journal(tmp_path, 1, 0, line(1, (None, {"a": 1.0}), (None, {"a": 2.0})), line(0, (7, {"a": 3.0})))
    table = CaseTable(tmp_path)
    assert [(case["index"], case["values"]["a"]) for case in table] == [(7, 3.0), (1, 1.0), (2, 2.0)]


def test_json_has_null_for_what_is_not_finite(tmp_path):
    journal(tmp_path, 1, 0, line(0, (0, {"a": math.nan}), (1, {"a": math.inf})))
    write_table(tmp_path, CaseTable(tmp_path))
    rows = (tmp_path / "results.jsonl").read_text().splitlines()
    assert [json.loads(row)["values"] for row in rows] == [{"a": None}, {"a": "inf"}]
    assert (tmp_path / "results.csv").read_text() == "index,name,a\n0,n0,nan\n1,n1,inf\n"
    write_summary(tmp_path, {"summary": {"a": math.nan, "b": -math.inf}})
    assert json.loads((tmp_path / "results.json").read_text()) == {"summary": {"a": None, "b": "-inf"}}


def test_the_memory_that_a_case_takes_does_not_depend_on_its_numbers(tmp_path):
    journal(tmp_path, 1, 0, *(line(k, (k, {f"number {i}": 0.1 for i in range(50)})) for k in range(20)))
    table = CaseTable(tmp_path)
    assert table._order.nbytes == 20 * 5 * 8
    assert len(list(table)) == 20
