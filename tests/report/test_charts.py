"""Which curves are shown together, and how they are thinned and drawn."""

import re
from array import array

import numpy as np
import pytest

from tests.seen_runs import Page
from vision3d_engine.report.charts import Chart, Curve, charts_of, classes_of, figure, thinned


def curves(**numbers):
    """Curves by ``phase__name``, in which ``_`` of a name is a slash."""
    split = (key.split("__") for key in numbers)
    keys = [(phase, name.replace("_", "/")) for phase, name in split]
    return {key: (array("d", range(1, 3)), array("d", [1.0, 2.0])) for key in keys}


def names(charts):
    return {chart.title: [curve.name for curve in chart.curves] for chart in charts}


def test_a_number_of_all_phases_and_sets_is_on_one_chart_the_loss_first_the_rates_last():
    found = charts_of(
        {("train", "lr"): ([1], [2]), ("val", "seg/mIoU"): ([1], [2]), **curves(val__easy_loss=0, train__loss=0)}
    )
    assert names(found) == {"loss": ["train", "val easy"], "mIoU": ["val seg"], "lr": ["train"]}


def test_means_of_epochs_are_told_from_log_lines_and_rates_of_groups_are_one_chart():
    one = ([1], [2])
    found = charts_of({("train", "lr/head"): one, ("train_epoch", "loss"): one, ("train", "lr/default/no_decay"): one})
    assert names(found) == {"loss": ["train, mean of epoch"], "lr": ["head", "default/no_decay"]}


def test_the_classes_of_a_metric_are_one_chart_unless_there_are_more_than_colours():
    few = {("val", f"seg/IoU/{name}"): ([1], [2]) for name in "ab"}
    many = {("val", f"seg/IoU/{place}"): ([1], [2]) for place in range(13)}
    assert names(charts_of({**few, ("val", "seg/mIoU"): ([1], [2])})) == {
        "seg/IoU": ["val a", "val b"],
        "mIoU": ["val seg"],
    }
    assert charts_of(many) == []


def test_numbers_of_classes_are_a_table_with_a_column_for_each_phase_and_set():
    last = {("val", "seg/IoU/floor"): 0.25, ("val", "seg/mIoU"): 0.5, ("test", "seg/IoU/floor"): 0.75}
    last |= {("test", "seg/IoU/wall"): None, ("train", "lr/head/no_decay"): 1.0}
    assert classes_of(last) == [["", "val seg/IoU", "test seg/IoU"], ["floor", "0.25", "0.75"], ["wall", "", "-"]]


def test_a_short_curve_keeps_all_its_points_and_breaks_where_it_is_nan():
    pieces = thinned(np.arange(6.0), np.array([1, np.nan, np.nan, 2, 3, np.nan]), 10)
    assert [piece.tolist() for piece in pieces] == [[0], [3, 4]]


def test_a_long_curve_keeps_the_least_and_greatest_number_of_each_column():
    y = np.random.default_rng(0).normal(size=100_000)
    y[54_321], y[12_345], y[70_000:80_000] = 99, -99, np.nan
    pieces = thinned(np.arange(100_000.0), y, 100)
    kept = np.concatenate(pieces)
    assert {54_321, 12_345} <= set(kept.tolist())
    assert len(kept) <= 200
    assert len(pieces) == 2
    assert (np.diff(kept) > 0).all()


def drawn(chart):
    """The title of each line by the points of its path."""
    text = str(figure(chart))
    return [re.sub("h0", "", path) for path in Page(text).attributes("path", "d")], Page(text)


def test_a_chart_is_drawn_on_axes_with_ticks_and_a_legend():
    chart = Chart("loss", [Curve("train", np.array([0.0, 100.0]), np.array([0.0, 1.0]))])
    (path,), page = drawn(chart)
    assert path == "M56,194 448,10"
    assert {"0", "20", "100", "0.2", "1", "training batches"} <= set(page.texts["text"])
    assert page.texts["figcaption"] == ["loss", "train"]


@pytest.mark.parametrize(
    "y", [[np.nan, np.nan], [3.0, 3.0], [0.0, 0.0], [-1e299, 1e299], [1e15, 1e15 + 1], [1e-310, 0]]
)
def test_a_chart_of_any_numbers_is_drawn_inside_of_its_box(y):
    paths, page = drawn(Chart("x", [Curve("a", np.array([5.0, 5.0]), np.array(y))]))
    for number in re.findall(r"-?[\d.]+(?:e[+-]?\d+)?", " ".join(paths)):
        assert 0 <= float(number) <= 460
    assert bool(paths) == (not np.isnan(y[0]))
    assert paths or "no finite number" in page.texts["p"]


def test_a_curve_without_a_number_takes_no_colour_from_the_others():
    gone, there = Curve("a", np.ones(1), np.array([np.nan])), Curve("b", np.ones(1), np.ones(1))
    page = drawn(Chart("x", [gone, there]))[1]
    assert page.attributes("path", "stroke")[0] == page.attributes("i", "style")[1].removeprefix("background:")
