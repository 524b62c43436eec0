"""Metrics of torchmetrics that several processes have updated, also those in one another, are those of all batches."""

import pytest
import torch
import torchmetrics
from torchmetrics.classification import BinaryAveragePrecision, MulticlassJaccardIndex
from torchmetrics.image import PeakSignalNoiseRatio
from torchmetrics.regression import MeanSquaredError, PearsonCorrCoef
from torchmetrics.retrieval import RetrievalMAP

from vision3d_engine import RegistrationError, ResultError
from vision3d_engine.metrics.adapters import check_metric, flat_numbers, merged, state_of

GENERATOR = torch.Generator().manual_seed(0)
VALUES = [torch.rand(size, generator=GENERATOR) for size in (2, 5, 1, 3, 4)]
PAIRS = [(values, values.flip(0)) for values in VALUES]
CLASSES = [((4 * values).long(), (4 * values.flip(0)).long()) for values in VALUES]
LISTS = [(values, values > 0.4, torch.full((len(values),), row)) for row, values in enumerate(VALUES)]
BINARY = [(values, (values.flip(0) > 0.4).long()) for values in VALUES]
COLUMNS = [tuple(each[:, None].repeat(1, 2) for each in pair) for pair in PAIRS]


class Own(torchmetrics.Metric):
    """The least of torchmetrics' metrics; what is not said elsewhere is not known of it."""

    full_state_update = False

    def update(self, values):
        """Take in values."""

    def compute(self):
        return 0


class Nested(Own):
    """Has a state of its own and another metric, which has the rest."""

    def __init__(self):
        super().__init__()
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")
        self.inner = torchmetrics.MeanMetric()
        self.total = torchmetrics.SumMetric()

    def update(self, values):
        self.count += len(values)
        self.inner.update(values)
        self.total.update(values)

    def compute(self):
        return {"mean": self.total.compute() / self.count, "inner": self.inner.compute()}


class Caring(Nested):
    """Merges what is in it by itself."""

    def merge_state(self, incoming_state):
        self.count = self.count + incoming_state.count
        self.inner.merge_state(incoming_state.inner)
        self.total.merge_state(incoming_state.total)


class Hiding(Own):
    """Has its metric where torch finds no module."""

    def __init__(self):
        super().__init__()
        self.inner = [torchmetrics.SumMetric()]


class Rate(Own):
    """A running mean whose weight is not known to torchmetrics."""

    def __init__(self, reduction="mean"):
        super().__init__()
        self.add_state("rate", torch.tensor(0.0), dist_reduce_fx=reduction)

    def update(self, values):
        self.rate = (self.rate + values.mean()) / 2

    def compute(self):
        return self.rate


def in_a_collection(**metrics):
    return torchmetrics.MetricCollection(metrics)


METRICS = {
    "sum": (torchmetrics.SumMetric(), VALUES),
    "nested": (Nested(), VALUES),
    "merges itself": (Caring(), VALUES),
    "by class": (torchmetrics.ClasswiseWrapper(MulticlassJaccardIndex(4, "none")), CLASSES),
    "least and most": (torchmetrics.MinMaxMetric(torchmetrics.MeanMetric()), VALUES),
    "many outputs": (torchmetrics.MultioutputWrapper(MeanSquaredError(), 2), COLUMNS),
    "composed": (torchmetrics.SumMetric() / torchmetrics.MeanMetric(), VALUES),
    "one metric twice": ((total := torchmetrics.SumMetric()) + total * 2, VALUES),
    "collection": (in_a_collection(a=MulticlassJaccardIndex(4), b=MulticlassJaccardIndex(4, "none")), CLASSES),
    "collection of nested": (in_a_collection(a=Nested(), b=torchmetrics.SumMetric()), VALUES),
    "a constant that is a mean": (PeakSignalNoiseRatio(data_range=0.7), PAIRS),
    "the greatest and least": (PeakSignalNoiseRatio(data_range=(0.0, 1.0)), PAIRS),
    "lists to join": (BinaryAveragePrecision(), BINARY),
    "lists with no reduction": (RetrievalMAP(), LISTS),
}
each_metric = pytest.mark.parametrize(("metric", "batches"), METRICS.values(), ids=METRICS)


def taken_in(metric, batches):
    state = state_of(metric)
    for batch in batches:
        state.update(*(batch if isinstance(batch, tuple) else (batch,)))
    return state


def numbers_of(state):
    return flat_numbers("it", state.compute())[0]


@each_metric
@pytest.mark.parametrize("cuts", [(1,), (2, 3), (1, 2, 4)])
def test_what_several_processes_have_counted_is_the_number_of_all_batches(metric, batches, cuts):
    check_metric("it", metric, processes=2)
    parts = [batches[start:end] for start, end in zip((0, *cuts), (*cuts, len(batches)), strict=True)]
    whole = merged(metric, [taken_in(metric, part).packed() for part in parts])
    assert numbers_of(whole) == pytest.approx(numbers_of(taken_in(metric, batches)), rel=1e-5)


@each_metric
def test_states_of_several_processes_that_one_goes_on_with_are_those_of_all_batches(metric, batches):
    """None of them has counted an update since it was loaded."""
    parts = [state_of(metric) for _ in range(2)]
    for state, part in zip(parts, (batches[:2], batches[2:4]), strict=True):
        state.load_state_dict(taken_in(metric, part).state_dict())
    parts[0].merge([parts[1].metric])
    parts[0].update(*(batches[4] if isinstance(batches[4], tuple) else (batches[4],)))
    assert numbers_of(parts[0]) == pytest.approx(numbers_of(taken_in(metric, batches)), rel=1e-5)


def test_a_bootstrap_over_several_processes_has_the_samples_of_all():
    metric = torchmetrics.BootStrapper(torchmetrics.MeanMetric(), num_bootstraps=50)
    whole = merged(metric, [taken_in(metric, VALUES[:2]).packed(), taken_in(metric, VALUES[2:]).packed()])
    assert numbers_of(whole)["it/mean"] == pytest.approx(torch.cat(VALUES).mean().item(), abs=0.1)


@pytest.mark.parametrize(
    ("metric", "reason"),
    [
        (torchmetrics.MaxMetric(), r"MaxMetric \(its full_state_update is not False"),
        (torchmetrics.ClasswiseWrapper(PearsonCorrCoef()), r"PearsonCorrCoef \(its full_state_update"),
        (torchmetrics.RunningMean(3), r"RunningMean \(its full_state_update"),
        (in_a_collection(a=torchmetrics.SumMetric(dist_sync_on_step=True)), r"SumMetric \(its dist_sync_on_step"),
        (Rate(None), r"Rate \(its state 'rate' has a dist_reduce_fx that is none of"),
        (Rate(torch.median), r"Rate \(its state 'rate' has a dist_reduce_fx that is none of"),
        (Hiding(), r"Hiding \(neither it nor a metric that is its attribute has one by add_state"),
    ],
)
def test_what_several_processes_would_merge_wrongly_is_refused_there_and_not_on_one(metric, reason):
    check_metric("it", metric, processes=1)
    with pytest.raises(RegistrationError, match=rf"'it'\): torchmetrics merges no state of {reason}"):
        check_metric("it", metric, processes=2)


def test_a_mean_over_processes_that_is_no_constant_is_an_error_that_names_both_values():
    packed = [taken_in(Rate(), [torch.tensor([value])]).packed() for value in (4.0, 8.0)]
    with pytest.raises(ResultError, match=r"its state 'rate' has dist_reduce_fx='mean' and is 2.0 on one and 4.0 on"):
        merged(Rate(), packed)
