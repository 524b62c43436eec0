"""IoU and accuracies over all points of a set."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.metrics.merging import assert_same, merged, taken_in
from vision3d_engine import ConfigError, ResultError
from vision3d_engine.metrics.confusion_matrix import ConfusionMatrix

NUM_CLASSES = 4
classes = st.integers(0, NUM_CLASSES - 1)
points = st.lists(st.tuples(classes, classes), min_size=0, max_size=20)


def make(**kwargs):
    return ConfusionMatrix(NUM_CLASSES, **kwargs)


def batch_of(pairs):
    return torch.tensor(pairs, dtype=torch.int64).view(-1, 2).unbind(1)


def reference(prediction, label, ignored=()):
    """Return the numbers by sets of points, class by class."""
    pairs = [(p, t) for p, t in zip(prediction, label, strict=True) if t not in ignored]
    iou, recall = [], []
    for each in range(NUM_CLASSES):
        hits = sum(p == t == each for p, t in pairs)
        union, labels = sum(each in pair for pair in pairs), sum(t == each for _, t in pairs)
        iou.append(hits / union if union and each not in ignored else math.nan)
        recall.append(hits / labels if labels else math.nan)
    means = {"mIoU": mean(iou), "OA": mean([float(p == t) for p, t in pairs]), "mAcc": mean(recall)}
    return means | {f"IoU/{each}": value for each, value in enumerate(iou)}


def mean(values):
    values = [value for value in values if not math.isnan(value)]
    return float(np.mean(values)) if values else math.nan


@given(st.lists(points, max_size=6), st.lists(st.integers(0, 6), max_size=3))
def test_the_numbers_are_those_of_all_points_at_once_however_they_are_split(batches, cuts):
    cuts = [min(cut, len(batches)) for cut in cuts]
    batches = [batch_of(pairs) for pairs in batches]
    total = merged(make, batches, cuts)
    assert_same(total, taken_in(make, batches))
    prediction, label = ([each for batch in batches for each in batch[side].tolist()] for side in (0, 1))
    assert total.compute() == pytest.approx(reference(prediction, label), nan_ok=True)


def test_numbers_far_from_any_class_are_counted_as_none_and_not_as_a_pair():
    far = torch.tensor([-(2**40), -1, 4, 5, 256, 2**32 + 1, 2**62])
    metric = make(ignore_index=256)
    metric.update(
        torch.cat([far, torch.ones_like(far), torch.tensor([1])]), torch.cat([torch.ones_like(far), far, far[:1]])
    )
    assert metric.matrix.tolist() == [[0] * 4] * 4
    with pytest.raises(ResultError, match=r"got 7 labels and 7 predictions, of 15 points"):
        metric.compute()


@given(points, st.sampled_from([-1, 255, 0, 2]))
def test_labels_to_be_ignored_are_left_out_be_they_a_class_or_not(pairs, ignored):
    prediction, label = batch_of([*pairs, (1, ignored)])
    metric = make(ignore_index=ignored)
    metric.update(prediction, label)
    expected = reference(prediction.tolist(), label.tolist(), ignored=(ignored,))
    assert metric.compute() == pytest.approx(expected, nan_ok=True)


def test_the_numbers_are_those_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    prediction, label = torch.randint(NUM_CLASSES, (2, 500), generator=torch.Generator().manual_seed(0))
    metric = make()
    metric.update(prediction, label)
    found = metric.compute()
    assert found["mIoU"] == pytest.approx(metrics.jaccard_score(label, prediction, average="macro"))
    assert found["OA"] == pytest.approx(metrics.accuracy_score(label, prediction))
    assert found["mAcc"] == pytest.approx(metrics.balanced_accuracy_score(label, prediction))
    assert np.array_equal(metric.matrix, metrics.confusion_matrix(label, prediction))


@pytest.mark.parametrize("shape", [(7,), (2, 5), (2, 3, 5)])
def test_logits_count_like_the_classes_they_stand_for(shape):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(shape[0], NUM_CLASSES, *shape[1:], generator=generator, requires_grad=True)
    label = torch.randint(NUM_CLASSES, shape, generator=generator)
    by_logits, by_classes = make(), make()
    by_logits.update(logits, label.to(torch.uint8))
    by_classes.update(logits.argmax(1).numpy(), label.numpy())
    assert torch.equal(by_logits.matrix, by_classes.matrix)
    assert by_logits.matrix.sum() == label.numel()


def test_a_class_that_never_occurs_is_nan_and_one_that_is_only_predicted_is_zero():
    metric = make(names=["floor", "wall", "chair", "lamp"])
    metric.update(torch.tensor([0, 1, 2]), torch.tensor([0, 1, 1]))
    found = metric.compute()
    assert found["IoU/chair"] == 0
    assert math.isnan(found["IoU/lamp"])
    assert found["mIoU"] == pytest.approx((1 + 1 / 2 + 0) / 3)
    assert found["mAcc"] == pytest.approx((1 + 1 / 2) / 2)


@pytest.mark.parametrize(("prediction", "label"), [(0, -1), (0, 4), (0, 255), (0, -(2**63)), (4, 0), (-1, 3)])
def test_what_is_no_class_is_told_by_number_when_the_metric_is_computed(prediction, label):
    metric = make(ignore_index=-100)
    metric.update(torch.tensor([0, 1, prediction, prediction]), torch.tensor([0, 1, label, label]))
    wrong = (2, 0) if label not in range(4) else (0, 2)
    with pytest.raises(ResultError, match=r"got {} labels and {} predictions, of 4 points, that are no".format(*wrong)):
        metric.compute()
    assert metric.matrix.sum() == 2


@pytest.mark.parametrize(
    ("prediction", "label"),
    [
        (torch.zeros(2, 5, NUM_CLASSES), torch.zeros(2, 5, dtype=torch.int64)),
        (torch.zeros(5), torch.zeros(5, dtype=torch.int64)),
        (torch.zeros(5, dtype=torch.int64), torch.zeros(5)),
        (torch.zeros(5, dtype=torch.int64), torch.zeros(4, dtype=torch.int64)),
    ],
)
def test_shapes_and_types_that_do_not_fit_are_an_error_that_names_them(prediction, label):
    with pytest.raises(ResultError, match=r"ConfusionMatrix.update got a prediction \(.*expected .*transpose"):
        make().update(prediction, label)


@pytest.mark.parametrize("num_classes", [0, -1, 4.0, "4", True])
def test_a_number_of_classes_that_is_none_is_refused(num_classes):
    with pytest.raises(ConfigError, match=r"ConfusionMatrix got num_classes=.*; expected a whole number of classes"):
        ConfusionMatrix(num_classes)


@pytest.mark.parametrize("names", [["a"], ["a", "a"], {0: "a"}, {1: "a", 2: "b"}, {"a": 0, "b": 1}, "ab"])
def test_names_must_fit_the_classes(names):
    with pytest.raises(ConfigError, match=r"got names=.*; expected a name for each of 2 classes"):
        ConfusionMatrix(2, names)


def test_names_may_come_by_the_numbers_of_their_classes():
    assert ConfusionMatrix(2, {1: "wall", 0: "floor"}).names == ("floor", "wall")


@pytest.mark.parametrize("ignored", [[0, 255], "255", 255.0])
def test_a_label_to_be_ignored_must_be_one_whole_number(ignored):
    with pytest.raises(ConfigError, match=r"got ignore_index=.*; expected one whole number or None; map further"):
        make(ignore_index=ignored)


@pytest.mark.parametrize("bad", [slice(None), slice(0, 1)], ids=["all", "one of them"])
def test_points_whose_logits_are_nan_count_as_wrong_and_are_told_unless_they_are_ignored(bad, capsys):
    logits, label = torch.eye(NUM_CLASSES)[[0, 1, 1, 2, 0]], torch.tensor([0, 1, 1, 2, -1])
    logits[[0, 2, 4], bad] = math.nan
    metric = make(ignore_index=-1)
    metric.update(logits, label)
    found = metric.compute()
    assert found["OA"] == 2 / 4
    assert [found[f"IoU/{index}"] for index in range(3)] == [0, 1 / 2, 1]
    assert metric.matrix.sum() == 2
    assert (
        capsys.readouterr().err
        == "WARNING: ConfusionMatrix: 2 of 4 points have logits that hold NaN; they count as wrong\n"
    )
