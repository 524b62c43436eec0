"""Registered metrics on one, two and three processes, against all samples at once."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, confusion_matrix, jaccard_score

from tests.stories.metric_server import PARTS, Clouds
from tests.stories.test_worlds import World

SERVER = Path(__file__).parent / "metric_server.py"
SOME = (1, 2, 3, 5, 8)
EXACT = 1e-12  # sums of float64 in another order


@pytest.fixture(
    scope="module", params=[pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(3, marks=pytest.mark.slow)]
)
def world(request):
    world = World(request.param, SERVER)
    yield world
    world.close()


def part_ious(cloud):
    """Return the mean IoU of a cloud over the parts of its category; one that is nowhere counts as 1."""
    parts = list(list(PARTS.values())[cloud["category"]])
    predicted = np.array(parts)[cloud["parts"][parts].argmax(0).numpy()]
    true = cloud["part"].numpy()
    unions = [((predicted == part) | (true == part)).sum() for part in parts]
    hits = [((predicted == part) & (true == part)).sum() for part in parts]
    return np.mean([hit / union if union else 1.0 for hit, union in zip(hits, unions, strict=True)])


def pose_errors(cloud):
    """Return the angle between rotations about one axis, and the distance of the translations."""
    rotation = cloud["estimated"][:3, :3].numpy()
    return math.degrees(math.atan2(rotation[1, 0], rotation[0, 0])), cloud["estimated"][:3, 3].norm().item()


def by_hand(count):
    """Return the numbers over all clouds at once: those that are counts, and those that are not."""
    clouds = [Clouds(count)[index] for index in range(count)]
    true = torch.stack([cloud["label"] for cloud in clouds]).flatten()
    predicted = torch.stack([cloud["logits"].argmax(0) for cloud in clouds]).flatten()
    is_known = true >= 0
    true, predicted = true[is_known].numpy(), predicted[is_known].numpy()
    present = np.union1d(true, predicted)
    each = dict.fromkeys(range(4), math.nan)
    each |= dict(zip(present.tolist(), jaccard_score(true, predicted, average=None, labels=present), strict=True))
    errors = [pose_errors(cloud) for cloud in clouds]
    right = [error for error in errors if error[0] < 5 and error[1] < 2]
    counts = {f"seg/IoU/{index}": value for index, value in each.items()}
    counts |= {
        "seg/OA": (true == predicted).mean(),
        "pose/RR": len(right) / count,
        "own/number": count,
        "nested": count,
    }
    ious = [part_ious(cloud) for cloud in clouds]
    score = torch.stack([cloud["logits"][0].sigmoid() for cloud in clouds]).flatten()
    is_first = torch.stack([cloud["label"] == 0 for cloud in clouds]).flatten()
    sums = {"seg/mIoU": np.nanmean([*each.values()]), "parts/mIoU/instance": np.mean(ious)}
    sums |= {"pose/RRE/all": np.mean(errors, axis=0)[0], "pose/RTE/all": np.mean(errors, axis=0)[1]}
    single = {"mean": np.mean([cloud["estimated"][0, 3] for cloud in clouds])}
    single |= {"ap": average_precision_score(is_first, score)} if is_first.any() else {}
    return counts, sums, single, confusion_matrix(true, predicted, labels=range(4)).tolist()


def check(found, count):
    """Compare the summaries of all processes, which are alike, with what is counted by hand."""
    counts, sums, single, _ = by_hand(count)
    for summary in found:
        assert summary == pytest.approx(found[0], rel=0, abs=0, nan_ok=True)
        assert {key: summary[key] for key in counts} == pytest.approx(counts, rel=0, abs=0, nan_ok=True)
        assert {key: summary[key] for key in sums} == pytest.approx(sums, rel=EXACT, abs=1e-9)
        assert {key: summary[key] for key in single} == pytest.approx(single, rel=1e-5, abs=1e-6)
        assert summary["both/a"] == summary["jaccard"]
        for index in range(4):
            iou = counts[f"seg/IoU/{index}"]
            assert summary[f"classes/multiclassjaccardindex_{index}"] == summary[f"both/b/{index}"]
            assert summary[f"both/b/{index}"] == pytest.approx(0 if math.isnan(iou) else iou, rel=1e-6)


def check_length(world, count):
    train_count = max(count, world.size)
    trained = world.run(kind="train", count=count, train_count=train_count)
    assert [each.get("error") for each in trained] == [None] * world.size
    check([each["val"] for each in trained], count)
    check([each["train"] for each in trained], train_count)
    assert [each["matrix"] for each in trained] == [by_hand(count)[-1]] * world.size
    check(world.run(kind="test", count=count), count)


@pytest.mark.parametrize("count", SOME)
def test_training_validation_and_test_have_the_numbers_of_all_samples_at_once(world, count):
    check_length(world, count)


@pytest.mark.slow
def test_they_have_them_for_data_of_any_length(world):
    for count in range(1, 41):
        check_length(world, count)


@pytest.mark.parametrize("mode", ["join", "repeat", "cycle"])
def test_a_batch_that_is_repeated_for_other_processes_counts_once(world, mode):
    trained = world.run(kind="train", count=2, train_count=7, trainer={"uneven": mode})
    check([each["train"] for each in trained], 7)


def test_what_several_processes_cannot_merge_is_refused_when_it_is_registered(world):
    said = world.run(kind="refused")
    if world.size == 1:
        assert said == [[]]
        return
    for unmerged, full, synced, unpicklable, window in said:
        assert "which has no merge_state; on several processes merge_state(others) takes in" in unmerged
        assert "torchmetrics merges no state of MaxMetric" in full
        assert "torchmetrics merges no state of MeanMetric" in synced
        assert "cannot be pickled" in unpicklable
        assert "torchmetrics merges no state of RunningMean" in window
        assert {each.partition(":")[0] for each in (unmerged, full, synced, unpicklable)} == {"RegistrationError"}


@pytest.mark.parametrize("count", [1, 5])
def test_a_loop_of_the_scripts_own_has_the_numbers_over_all_processes(world, count):
    counts, _, single, matrix = by_hand(count)
    for found in world.run(kind="own loop", count=count, train_count=world.size):
        assert found["matrix"] == matrix
        assert found["val"]["seg/OA"] == counts["seg/OA"]
        assert found["val"]["mean"] == pytest.approx(single["mean"], rel=1e-5, abs=1e-6)


def test_a_metric_that_some_processes_lack_is_refused_on_all_of_them(world):
    if world.size > 1:
        errors = [each["error"] for each in world.run(kind="main only", count=3, train_count=3)]
        assert len({*errors}) == 1
        assert errors[0].startswith("RegistrationError: the processes have registered different metrics (rank 0: seg (")
        assert "extra (Least); rank 1: seg" in errors[0]


def test_a_merge_that_is_written_for_one_other_is_told_that_a_list_comes(world):
    if world.size > 1:
        for found in world.run(kind="for one", count=4, train_count=4):
            assert "merge_state of a registered ForOne raised AttributeError" in found["error"]
            assert "It gets a list of the same metric of other processes" in found["error"]
