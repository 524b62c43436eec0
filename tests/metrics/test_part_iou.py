"""IoU of the parts of shapes."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.metrics.merging import assert_same, merged, taken_in
from vision3d_engine import ConfigError, ResultError
from vision3d_engine.metrics.part_iou import SHAPENET_PARTS, PartIoU

PARTS = {"mug": [0, 1], "lamp": [2, 3, 4], "bag": [5]}


def make():
    return PartIoU(PARTS)


@st.composite
def batches_of_shapes(draw):
    """Batches of one to three shapes of four points; predictions of any part, labels of the category's."""
    batches = []
    for size in draw(st.lists(st.integers(1, 3), max_size=4)):
        category = draw(st.lists(st.integers(0, 2), min_size=size, max_size=size))
        members = [list(PARTS.values())[each] for each in category]
        label = [draw(st.lists(st.sampled_from(each), min_size=4, max_size=4)) for each in members]
        prediction = [draw(st.lists(st.integers(0, 5), min_size=4, max_size=4)) for _ in members]
        batches.append((torch.tensor(prediction), torch.tensor(label), torch.tensor(category)))
    return batches


def iou_of(prediction, label, parts):
    """Return the mean over parts of one shape, one that is nowhere counting as 1, in numpy."""
    unions = [np.sum((prediction == part) | (label == part)) for part in parts]
    hits = [np.sum((prediction == part) & (label == part)) for part in parts]
    return np.mean([1.0 if union == 0 else hit / union for hit, union in zip(hits, unions, strict=True)])


def reference(batches):
    shapes = [shape for batch in batches for shape in zip(*(each.numpy() for each in batch), strict=True)]
    found = {name: [] for name in PARTS}
    for prediction, label, category in shapes:
        name = list(PARTS)[category]
        found[name].append(iou_of(prediction, label, PARTS[name]))
    each = {f"IoU/{name}": np.mean(iou) if iou else math.nan for name, iou in found.items()}
    all_iou = [each for iou in found.values() for each in iou]
    means = {
        "mIoU/instance": np.mean(all_iou) if all_iou else math.nan,
        "mIoU/category": np.nanmean(list(each.values())) if all_iou else math.nan,
    }
    return means | each


@given(batches_of_shapes(), st.lists(st.integers(0, 4), max_size=2))
def test_the_means_are_those_of_all_shapes_at_once_however_they_are_split(batches, cuts):
    total = merged(make, batches, [min(cut, len(batches)) for cut in cuts])
    assert_same(total, taken_in(make, batches))
    assert total.compute() == pytest.approx(reference(batches), nan_ok=True)


def test_logits_are_compared_among_the_parts_of_the_category():
    logits = torch.zeros(2, 6, 3)
    logits[:, 5] = 9.0
    logits[0, 1] = 1.0
    logits[1, 3] = 1.0
    metric = make()
    metric.update(logits, torch.tensor([[1, 1, 1], [3, 3, 3]]), torch.tensor([[0], [1]]))
    assert metric.compute()["mIoU/instance"] == 1


def test_a_single_shape_counts_like_a_batch_of_one():
    generator = torch.Generator().manual_seed(0)
    logits, label = torch.randn(1, 6, 9, generator=generator), torch.randint(2, 5, (1, 9), generator=generator)
    batch, single = make(), make()
    batch.update(logits, label, torch.tensor([1]))
    single.update(logits[0].T, label[0], 1)
    assert_same(single, batch)
    single.update(label[0].numpy(), label[0].numpy(), 1)
    assert single.sums["shapes"].tolist() == [0, 2, 0]


@pytest.mark.parametrize(
    ("prediction", "label", "category", "told"),
    [
        (0, 0, 3, "1 shapes of no category"),
        (0, 0, -1, "1 shapes of no category"),
        (0, 2, 0, "1 labels that are no part"),
        (0, 6, 0, "1 labels that are no part"),
        (0, -1, 0, "1 labels that are no part"),
        (6, 1, 0, "1 predictions outside 0 to 5"),
        (-1, 1, 0, "1 predictions outside 0 to 5"),
    ],
)
def test_what_is_no_category_or_part_is_told_by_number_when_computed(prediction, label, category, told):
    metric = make()
    metric.update(torch.tensor([0, prediction]), torch.tensor([0, label]), category)
    with pytest.raises(ResultError, match=told):
        metric.compute()


def test_shapes_and_arguments_that_do_not_fit_are_errors():
    label = torch.zeros(2, 5, dtype=torch.int64)
    with pytest.raises(ResultError, match=r"labels \(2, 5\) torch.int64 and categories \(3,\)"):
        make().update(label, label, torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ResultError, match=r"logits with 6 classes in dimension 1"):
        make().update(torch.zeros(2, 5, 6), label, label[:, 0])
    with pytest.raises(ResultError, match="update of a metric got a list of 2; expected a tensor"):
        make().update(label, label, ["mug", "mug"])


@pytest.mark.parametrize("parts", [{}, {"mug": []}, {"mug": 4}, {"mug": [-1]}, {"mug": ["handle"]}, [[0, 1]]])
def test_parts_that_are_none_are_refused_with_an_example(parts):
    with pytest.raises(ConfigError, match=r"PartIoU got parts=.*; expected the parts of each category by its name"):
        PartIoU(parts)


def test_points_whose_logits_are_nan_among_the_parts_count_as_wrong_and_are_told(capsys):
    logits = torch.zeros(1, 6, 4)
    logits[0, 1] = 1
    logits[0, 0, 0] = logits[0, 5, 1] = math.nan  # the latter is no part of the first category
    metric = make()
    metric.update(logits, torch.ones(1, 4, dtype=torch.int64), torch.tensor([0]))
    assert metric.compute()["mIoU/instance"] == pytest.approx((3 / 4 + 1) / 2)
    assert "PartIoU: 1 of 4 points have logits that hold NaN; they count as wrong" in capsys.readouterr().err


def test_the_parts_of_shapenet_are_50_in_16_categories():
    parts = [part for each in SHAPENET_PARTS.values() for part in each]
    assert (len(SHAPENET_PARTS), parts) == (16, list(range(50)))
    assert PartIoU().num_parts == 50
