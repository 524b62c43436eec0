"""What cases say together."""

import math
import random

import numpy as np
import pytest

from vision3d_engine.results.statistics import CaseStatistics, statistics_text, what_is_wrong_with, worst_cases


def case(name, weights=1, **values):
    return {"name": name, "values": values, "weights": weights}


def collected(cases):
    statistics = CaseStatistics()
    for each in cases:
        statistics.add(each)
    return statistics


def test_the_mean_honours_weights_and_the_quartiles_are_those_of_the_cases():
    cases = [case("a", 1, x=1.0), case("b", 3, x=2.0), case("c", {"x": 0}, x=math.nan, y=5.0), case("d", 1, x=9.0)]
    found = collected(cases).table()
    lower, median, upper = np.quantile([1, 2, 9], (0.25, 0.5, 0.75))
    assert found["x"] == {
        "cases": 3, "mean": 16 / 5, "median": median, "lower_quartile": lower, "upper_quartile": upper
    }  # fmt: skip
    assert found["y"]["mean"] == 5.0


def test_no_order_of_the_cases_changes_a_digit_of_a_mean():
    numbers = [random.Random(i).uniform(-1, 1) * 10 ** (i % 20) for i in range(200)]
    means = []
    for seed in range(5):
        random.Random(seed).shuffle(numbers)
        means.append(collected(case("a", 0.3, x=x) for x in numbers).means()["x"])
    assert len(set(means)) == 1


def test_nothing_that_weighs_something_is_nan_and_so_is_a_mean_over_it():
    assert math.isnan(collected([case("a", 0, x=1.0)]).means()["x"])
    assert math.isnan(collected([case("a", x=math.nan), case("b", x=1.0)]).means()["x"])
    assert collected([case("a", x=math.inf), case("b", x=1.0)]).means()["x"] == math.inf


def test_infinities_are_numbers_of_which_the_quartiles_know_their_place():
    inf = math.inf
    found = collected([case("a", x=x) for x in (1, 2, inf, 3, inf)]).table()["x"]
    assert found == {"cases": 5, "mean": inf, "median": 3, "lower_quartile": 2, "upper_quartile": inf}
    found = collected([case("a", x=x) for x in (-inf, 1, 2, -inf)]).table()["x"]
    assert (found["lower_quartile"], found["median"], found["upper_quartile"]) == (-inf, -inf, 1.25)
    assert math.isnan(collected([case("a", x=inf), case("b", x=-inf)]).table()["x"]["mean"])


@pytest.mark.parametrize("weight", [0.25, 1, 100])
def test_the_mean_of_huge_numbers_is_one_too(weight):
    assert collected([case("a", weight, x=1.7e308), case("b", weight, x=1.7e308)]).means()["x"] == 1.7e308


def test_cases_that_do_not_count_are_not_the_worst():
    cases = [case(str(i), {"x": i % 2}, x=float(i) if i % 2 else math.nan) for i in range(6)]
    assert worst_cases(cases, ("x", "largest"), 2) == [("5", 5.0), ("3", 3.0)]


@pytest.mark.parametrize(("which", "expected"), [("largest", ["c", "b", "d"]), ("smallest", ["c", "a", "d"])])
def test_the_worst_cases_come_first_and_nan_is_worse_than_any(which, expected):
    cases = [case("a", x=1.0), case("b", x=7.0), case("c", x=math.nan), case("d", x=4.0), case("e", y=100.0)]
    assert [name for name, _ in worst_cases(cases, ("x", which), 3)] == expected


def test_a_wrong_wish_for_the_worst_cases_is_said():
    assert what_is_wrong_with(("RRE", "largest"), ["RRE"]) is None
    assert "has; did you mean 'RRE'? (there are: RRE)" in (what_is_wrong_with(("RRF", "largest"), ["RRE"]) or "")
    assert "expected a number's name and 'largest'" in (what_is_wrong_with("RRE", ["RRE"]) or "")


def test_the_table_for_people_has_a_line_a_number():
    text = statistics_text(collected([case("a", rre=1.5), case("b", rre=2.5)]).table())
    assert text.split()[-6:] == ["rre", "2", "2", "2", "1.75", "2.25"]
