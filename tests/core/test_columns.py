"""Rows of text in columns."""

from vision3d_engine.core.columns import aligned


def test_names_stand_on_the_left_and_numbers_end_below_one_another():
    rows = [("", "mean", "n"), ("a long name", "0.5", "12"), ("b", "12.25", "")]
    assert list(aligned(rows)) == ["              mean   n", "a long name    0.5  12", "b            12.25    "]


def test_of_no_rows_there_are_no_lines():
    assert list(aligned([])) == []
