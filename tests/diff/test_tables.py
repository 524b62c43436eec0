"""The comparison of numbers by step: its laws, against tables drawn at random."""

import math
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vision3d_engine.diff.tables import apart, compare_tables

NUMBERS = st.floats(allow_nan=True)
TABLES = st.dictionaries(
    st.integers(1, 12), st.dictionaries(st.sampled_from("abc"), NUMBERS, min_size=1, max_size=3), max_size=12
)


def other(value):
    """The next number but for one bit."""
    (bits,) = struct.unpack("q", struct.pack("d", value))
    return struct.unpack("d", struct.pack("q", bits ^ 1))[0]


@given(TABLES)
def test_a_table_does_not_differ_from_itself_whatever_numbers_it_holds(table):
    found = compare_tables(table, table)
    assert (found.differences, found.only_a, found.only_b) == ([], [], [])
    assert found.steps == sorted(table)


@given(TABLES, TABLES)
def test_the_order_of_the_tables_only_changes_sides(a, b):
    ab, ba = compare_tables(a, b), compare_tables(b, a)
    assert {(each.key, each.step) for each in ab.differences} == {(each.key, each.step) for each in ba.differences}
    assert (set(ab.only_a), set(ab.only_b)) == (set(ba.only_b), set(ba.only_a))
    assert ab.steps == ba.steps


@given(TABLES.filter(bool), st.data())
def test_one_bit_is_found_where_it_is_and_nothing_else(table, data):
    step = data.draw(st.sampled_from(sorted(table)))
    key = data.draw(st.sampled_from(sorted(table[step])))
    value = 0.5 if math.isnan(table[step][key]) else table[step][key]
    table = {**table, step: {**table[step], key: value}}
    changed = {**table, step: {**table[step], key: other(value)}}
    (found,) = compare_tables(table, changed).differences
    assert (found.key, found.step) == (key, step)


@given(TABLES, TABLES, st.integers(0, 12))
def test_a_run_that_is_shorter_differs_where_the_longer_one_did_or_later_than_it_is(a, b, length):
    full, cut = compare_tables(a, b), compare_tables({step: a[step] for step in a if step <= length}, b)
    names = set(cut.only_a + cut.only_b)
    expected = {each for each in full.differences if each.step <= length and each.key not in names}
    assert {repr(each) for each in expected} == {repr(each) for each in cut.differences}


def test_a_number_that_is_missing_in_one_step_differs_and_one_that_is_never_there_does_not():
    full = {1: {"loss": 1.0, "mae": 2.0, "extra": 0.0}, 2: {"loss": 1.0, "mae": 2.0, "extra": 0.0}}
    found = compare_tables(full, {1: {"loss": 1.0, "mae": 2.0}, 2: {"loss": 1.0}})
    assert [(each.key, each.step, each.a, each.b) for each in found.differences] == [("mae", 2, 2.0, None)]
    assert found.only_a == ["extra"]


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        (1.0, float(np.nextafter(np.float32(1), np.float32(2))), "1.2e-07 (1 ulp of fp32)"),
        (0.1, float(np.nextafter(0.1, 1)), "1.4e-16 (1 ulp of fp64)"),
        (0.0, -0.0, "the sign of zero"),
        (-1.0, 1.0, "2.0e+00"),
        (1.0, math.nan, ""),
        (1.0, None, ""),
        (1e308, 1.0, "1.0e+00"),
    ],
)
def test_how_far_numbers_are_apart_is_said_in_steps_of_their_type(a, b, said):
    assert apart(a, b) == said
