"""Numbers of single classes below a log line."""

from vision3d_engine.logs.number_table import number_table


def test_classes_are_rows_and_what_is_measured_are_columns_one_below_the_other():
    table = number_table({("seg/IoU", "floor"): 0.5, ("seg/IoU", "wall"): 0.25, ("parts", "wall"): 12})
    assert table.splitlines() == [
        "           seg/IoU  parts",
        "    floor    0.500",
        "    wall     0.250     12",
    ]


def test_without_numbers_there_is_no_table():
    assert number_table({}) == ""
