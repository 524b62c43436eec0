"""What every metric over a whole set does, whatever it measures."""

import math
import pickle

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.metrics.merging import assert_same, taken_in
from vision3d_engine import ConfigError, ResultError
from vision3d_engine.core.errors import CheckpointError
from vision3d_engine.metrics.confusion_matrix import ConfusionMatrix
from vision3d_engine.metrics.part_iou import PartIoU
from vision3d_engine.metrics.point_sets import PointSetDistances
from vision3d_engine.metrics.registration import FeatureMatchingRecall, RegistrationRecall, RMSERecall

GENERATOR = torch.Generator().manual_seed(0)
POINTS = torch.randn(2, 5, 3, generator=GENERATOR)
LABELS = torch.randint(4, (2, 5), generator=GENERATOR)
POSES = torch.eye(4).repeat(2, 1, 1)
POSES[:, :3] += torch.randn(2, 3, 4, generator=GENERATOR) * 0.005
BATCHES = {
    lambda: ConfusionMatrix(4, ignore_index=0): (torch.randn(2, 4, 5, generator=GENERATOR), LABELS),
    PartIoU: (torch.randn(2, 50, 5, generator=GENERATOR), LABELS, torch.zeros(2, dtype=torch.int64)),
    RegistrationRecall: (POSES, POSES.flip(0)),
    RMSERecall: (POINTS, POSES, POSES.flip(0)),
    FeatureMatchingRecall: (POINTS, POINTS + 0.05, POSES),
    PointSetDistances: (POINTS, POINTS[:, :4] + 0.004),
}
each_metric = pytest.mark.parametrize(("make", "batch"), BATCHES.items(), ids=[type(m()).__name__ for m in BATCHES])


def moved(batch, device):
    return [each.to(device) for each in batch]


@each_metric
def test_an_update_reads_nothing_from_the_device(make, batch):
    """Tensors on meta have no values: whatever reads one, and so would wait for a device, raises."""
    metric = make()
    for _ in range(2):
        metric.update(*moved(batch, "meta"))
    assert {held.device.type for held in metric.sums.values()} == {"meta"}


class Reads(TorchDispatchMode):
    """Counts the operations whose result, or its size, the host must know, as of a boolean mask."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))

    @property
    def count(self):
        return sum(name in {"_local_scalar_dense", "item", "nonzero", "bincount", "index"} for name in self.names)


KINDS = [torch.int64, torch.int32, torch.uint8]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ignore_index", [None, 0, 255])
def test_an_update_of_a_confusion_matrix_calls_nothing_that_a_device_is_waited_for(ignore_index, kind):
    metric, (logits, label) = ConfusionMatrix(4, ignore_index=ignore_index), (torch.randn(2, 4, 5), LABELS.to(kind))
    with Reads() as reads:
        metric.update(logits, label)
        metric.update(label, label)
    assert reads.names
    assert reads.count == 0
    with Reads() as reads:
        torch.bincount(label[label != 0])
        float(logits.sum())
    assert reads.count == 3, "a mask, a count and a number"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@each_metric
def test_on_cuda_torch_sees_no_wait_and_the_sums_are_those_of_the_host(make, batch):
    metric, on_device = make(), moved(batch, "cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        metric.update(*on_device)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert metric.compute() == pytest.approx(taken_in(make, [batch]).compute(), rel=1e-5, nan_ok=True)


@each_metric
def test_what_was_not_taken_in_is_nan_also_after_a_reset(make, batch):
    metric = taken_in(make, [batch])
    assert any(value > 0 for value in metric.compute().values())
    metric.reset()
    for empty in (metric, make()):
        assert all(math.isnan(value) for value in empty.compute().values())


@each_metric
def test_a_state_goes_on_where_it_was_kept_and_is_not_changed_by_what_follows(make, batch):
    metric, other = taken_in(make, [batch]), make()
    state = metric.state_dict()
    other.load_state_dict(state)
    for each in (metric, other):
        each.update(*batch)
    assert_same(other, metric)
    kept = make()
    kept.load_state_dict(state)
    assert_same(kept, taken_in(make, [batch]))


@each_metric
def test_metrics_that_are_merged_stay_as_they_are(make, batch):
    one, other = make(), taken_in(make, [batch])
    one.merge_state([other, other])
    assert_same(one, taken_in(make, [batch, batch]))
    one.update(*batch)
    assert_same(other, taken_in(make, [batch]))


@each_metric
def test_updates_may_come_in_inference_mode_and_outside_of_it(make, batch):
    metric = make()
    with torch.inference_mode():
        metric.reset()
        metric.update(*batch)
    metric.update(*batch)
    assert_same(metric, taken_in(make, [batch, batch]))


@pytest.mark.parametrize("make", [PartIoU, RegistrationRecall, RMSERecall, FeatureMatchingRecall, PointSetDistances])
def test_a_metric_can_be_sent_to_another_process(make):
    metric = taken_in(make, [BATCHES[make]])
    assert_same(pickle.loads(pickle.dumps(metric)), metric)


def test_states_of_another_metric_are_refused_before_any_is_added():
    with pytest.raises(CheckpointError, match=r"state of another metric: .* make the metric with the arguments"):
        ConfusionMatrix(4).load_state_dict(ConfusionMatrix(3).state_dict())
    metric, other = ConfusionMatrix(4), ConfusionMatrix(4)
    other.update(LABELS, LABELS)
    with pytest.raises(ResultError, match="merge metrics that were made with the same arguments"):
        metric.merge_state([other, ConfusionMatrix(3)])
    assert metric.matrix.sum() == 0


OTHERS = [
    (ConfusionMatrix(4), ConfusionMatrix(4, ignore_index=1), r"got ignore_index 1, expected None; "),
    (ConfusionMatrix(2, ["a", "b"]), ConfusionMatrix(2, ["b", "a"]), r"got names \['b', 'a'\], expected \['a', 'b'\]"),
    (PartIoU({"a": [0, 1], "b": [2]}), PartIoU({"a": [0], "b": [1, 2]}), r"got parts .*, expected "),
    (RegistrationRecall(), RegistrationRecall(max_translation=0.3), r"got max_translation 0.3, expected 2.0"),
    (PointSetDistances(), PointSetDistances(0.02), r"got threshold 0.02, expected 0.01"),
]


@pytest.mark.parametrize(("metric", "other", "difference"), OTHERS)
def test_what_was_counted_with_other_settings_is_neither_merged_nor_gone_on_with(metric, other, difference):
    with pytest.raises(ResultError, match=rf"{difference}.*merge metrics that were made with the same arguments"):
        metric.merge_state([other])
    with pytest.raises(CheckpointError, match=rf"{difference}.*make the metric with the arguments"):
        metric.load_state_dict(other.state_dict())


@each_metric
@pytest.mark.parametrize(("updates", "flag"), [("cpu", "meta"), ("meta", "cpu"), ("meta", "meta"), ("cpu", "cpu")])
def test_a_batch_is_undone_by_a_flag_on_any_device(make, batch, updates, flag):
    """As of a loss on CUDA while the metric is told classes on the host; meta stands for it, which reads nothing."""
    metric, empty = make(), make().sums
    metric.update(*moved(batch, updates))
    metric.undo_unless(torch.zeros((), dtype=torch.bool, device=flag), empty)
    assert {held.device.type for held in metric.sums.values()} == {max(updates, flag)}
    metric.update(*moved(batch, updates))


@each_metric
@pytest.mark.parametrize("is_right", [True, False])
def test_a_flag_says_whether_a_batch_is_undone(make, batch, is_right):
    metric = taken_in(make, [batch])
    earlier = metric.sums
    metric.update(*batch)
    metric.undo_unless(torch.tensor(is_right), earlier)
    assert_same(metric, taken_in(make, [batch, batch] if is_right else [batch]))


def test_the_front_door_and_the_room_hand_out_the_same_metrics():
    import vision3d_engine
    from vision3d_engine import metrics

    for name in {*metrics.__all__} - {"SHAPENET_PARTS"}:
        assert getattr(vision3d_engine, name) is getattr(metrics, name)


@each_metric
def test_what_is_no_tensor_is_refused_with_what_was_expected(make, batch):
    with pytest.raises(ResultError, match="update of a metric got a dict with the keys logits; expected a tensor"):
        make().update(*({"logits": each} for each in batch))


@pytest.mark.parametrize("kind", [RegistrationRecall, RMSERecall, FeatureMatchingRecall, PointSetDistances])
@pytest.mark.parametrize("threshold", [-5, "5", None, True, math.nan])
def test_a_threshold_that_is_none_is_refused_when_the_metric_is_made(kind, threshold):
    with pytest.raises(ConfigError, match=f"{kind.__name__} got .*; expected finite numbers from 0 on"):
        kind(threshold)
