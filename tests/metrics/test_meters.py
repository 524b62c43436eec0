"""The meters that scripts use, and the engine's own."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vision3d_engine import AverageMeter, EngineError, ResultError, SummaryBoard, Timer
from vision3d_engine.metrics.running_means import RunningMeans

numbers = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30)


@given(numbers, st.integers(1, 40))
def test_an_average_meter_agrees_with_numpy_on_the_last_n_records(values, last_n):
    meter = AverageMeter()
    for value in values:
        meter.update(value)
    tail = np.array(values[-last_n:])
    assert meter.mean(last_n) == pytest.approx(tail.mean())
    assert meter.std(last_n) == pytest.approx(tail.std())
    assert meter.median(last_n) == pytest.approx(np.median(tail))
    assert meter.sum() == pytest.approx(np.sum(values))


def test_an_average_meter_takes_tensors_arrays_and_numbers_in_order():
    meter = AverageMeter()
    for value in (1, torch.tensor(2.0), np.float32(3), torch.tensor([4.0], requires_grad=True), np.array([5.0])):
        meter.update(value)
    assert meter.get_records().tolist() == [1, 2, 3, 4, 5]


def test_the_mean_of_an_empty_meter_is_nan():
    meter = AverageMeter()
    assert math.isnan(meter.mean())
    assert math.isnan(meter.median())
    assert meter.sum() == 0


def test_a_summary_board_registers_on_the_fly_when_told_to():
    board = SummaryBoard(auto_register=True)
    board.update_from_dict({"loss": 1.0, "acc": 3.0})
    board.update_from_dict({"loss": 2.0})
    assert board.summary() == {"loss": 1.5, "acc": 3.0}
    assert board.tostring() == "loss: 1.500, acc: 3.000"


def test_a_summary_board_forgives_an_unknown_reset_and_warns_of_an_unknown_update():
    board = SummaryBoard(["loss"])
    board.reset_meter("nothing")
    with pytest.warns(UserWarning, match="no meter 'acc'"):
        board.update("acc", 1)
    with pytest.raises(EngineError, match=r"no meter 'los' in the SummaryBoard; did you mean 'loss'"):
        board.mean("los")
    with pytest.raises(EngineError, match="already has a meter 'loss'"):
        board.register_meter("loss")


def test_a_timer_takes_the_mean_of_its_stretches(monkeypatch):
    times = iter([0.0, 1.0, 5.0, 8.0, 9.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(times))
    timer = Timer()
    for _ in range(2):
        timer.tic("data")
        timer.toc("data")
    assert timer.get_time("data") == 2.0
    assert timer.tostring(["data"], verbose=False) == "time: 2.000s"
    with pytest.raises(EngineError, match=r"Timer\.toc\('model'\) without"):
        timer.toc("model")


steps = st.lists(
    st.dictionaries(st.sampled_from(["a", "b", "c"]), st.tuples(st.floats(-100, 100), st.booleans())), max_size=20
)


@given(steps, st.integers(1, 5))
def test_moments_give_the_means_over_the_steps_that_had_a_key(steps, window):
    moments = RunningMeans()
    seen, recent = {}, {}
    for number, step in enumerate(steps, start=1):
        moments.update({k: torch.tensor(v, dtype=torch.float64) if t else v for k, (v, t) in step.items()})
        for key, (value, _) in step.items():
            seen.setdefault(key, []).append(value)
            recent.setdefault(key, []).append(value)
        if number % window == 0:
            means, *_ = moments.interval_means()
            assert means == pytest.approx({key: np.mean(values) for key, values in recent.items()})
            recent = {}
    assert moments.means() == pytest.approx({key: np.mean(values) for key, values in seen.items()})


NAN = float("nan")
ways = st.sampled_from(["number", "tensor", "dict", "dict of tensors"])
weighted_steps = st.lists(
    st.tuples(
        st.dictionaries(st.sampled_from("abc"), st.tuples(st.floats(-100, 100), st.booleans()), min_size=1),
        st.sampled_from([0, 1, 2, 5]),
        ways,
    ),
    max_size=20,
)


@given(weighted_steps, st.integers(0, 20))
def test_weighted_means_are_those_of_a_plain_sum_also_after_a_save_and_where_nothing_weighs(steps, saved_at):
    """A value without weight is NaN, as a mean over nothing is; a dict weighs single keys."""
    meters, sums = RunningMeans(), {}
    for number, (step, weight, way) in enumerate(steps):
        if number == saved_at:
            state, meters = meters.state_dict(), RunningMeans()
            meters.load_state_dict(state)
        own = {key: 1 if "dict" in way and key == "c" else weight for key in step}
        values = {key: (value if own[key] else NAN, is_tensor) for key, (value, is_tensor) in step.items()}
        given_weight = torch.tensor(weight) if "tensor" in way else weight
        given_weight = dict.fromkeys("ab", given_weight) if "dict" in way else given_weight
        meters.update(
            {k: torch.tensor(v, dtype=torch.float64) if t else v for k, (v, t) in values.items()}, given_weight
        )
        for key, (value, _) in values.items():
            total = sums.setdefault(key, [0.0, 0.0])
            total[0] += own[key]
            total[1] += own[key] * value if own[key] else 0.0
    expected = {key: total / weight for key, (weight, total) in sums.items() if weight}
    found = {key: mean for key, mean in meters.means().items() if not np.isnan(mean)}
    assert found == pytest.approx(expected, abs=1e-9)


def test_a_weight_may_be_changed_in_place_once_it_was_taken():
    meters, weight = RunningMeans(), torch.zeros(())
    for value in (1.0, 2.0):
        meters.update({"loss": torch.tensor(value), "mae": value}, weight.fill_(value))
    assert meters.means() == pytest.approx({"loss": 5 / 3, "mae": 5 / 3})


@pytest.mark.parametrize("weight", [np.array([2.0]), np.array(2), {"loss": np.array([2.0]), "mae": np.array([2.0])}])
def test_a_weight_may_be_an_array_of_one_element(weight):
    meters = RunningMeans()
    meters.update({"loss": torch.tensor(1.0), "mae": 1.0}, weight)
    meters.update({"loss": torch.tensor(4.0), "mae": 4.0})
    assert meters.means() == pytest.approx({"loss": 2.0, "mae": 2.0})


@pytest.mark.parametrize("weight", [0, 0.0, torch.tensor(0), {"mae": 0, "loss": torch.tensor(0)}])
def test_numbers_that_weigh_nothing_have_a_mean_of_nan_and_are_told(weight):
    meters = RunningMeans()
    meters.update({"loss": torch.tensor(1.0), "mae": 1.0}, weight)
    means, *_ = meters.interval_means()
    assert means.keys() == {"loss", "mae"} == meters.weightless
    assert all(np.isnan(value) for value in means.values())


def test_means_of_a_file_that_counts_steps_go_on():
    meters, state = RunningMeans(), {"keys": ["loss"], "count": 4, "total": {}, "window": {}}
    rows = {"keys": ["loss"], "count": 4, "rows": torch.tensor([[2.0]]), "numbers": [4]}
    rows["sums"] = torch.tensor([[9.0], [29.0]], dtype=torch.float64)
    meters.load_state_dict(state | {"waiting": [rows]})
    meters.update({"loss": torch.tensor(1.0)})
    assert meters.means() == {"loss": 12 / 5}


def test_moments_do_not_grow_with_the_number_of_steps():
    moments = RunningMeans()
    for _ in range(2000):
        moments.update({"loss": torch.ones(())})
    waiting = [len(rows._rows) for rows in moments._waiting.values()]
    assert max(waiting) <= 256
    assert moments.means() == {"loss": 1.0}


def test_moments_over_processes_are_weighted_by_their_counts():
    def add_up(sums):
        count, total, squares = sums["loss"]
        return {"loss": (count + 3, total + 30, squares + 300), "rare": (1.0, 5.0, 25.0)}

    moments = RunningMeans(add_up)
    moments.update({"loss": 2.0})
    assert moments.means() == {"loss": 8.0, "rare": 5.0}


def test_other_numbers_are_read_in_the_same_copy():
    moments = RunningMeans()
    moments.update({"loss": torch.tensor(2.0)})
    moments.update({"loss": torch.tensor(4.0), "rare": torch.tensor(1, dtype=torch.int64)})
    assert moments.interval_means(torch.tensor(7.0)) == ({"loss": 3.0, "rare": 1.0}, [7.0], {})
    assert moments.interval_means(torch.tensor(8.0)) == ({}, [8.0], {})


@pytest.mark.parametrize("first", [1.0, torch.tensor(1.0)])
@pytest.mark.parametrize("later", [torch.ones(3), np.ones(3), "good", None, [1, 2]])
@pytest.mark.parametrize("others", [{}, {"loss": torch.tensor(1.0)}, {"loss": torch.ones(3)}])
def test_a_result_that_turns_into_something_else_is_named_with_its_step(first, later, others):
    meters = RunningMeans()
    meters.update({"acc": first, **dict.fromkeys(others, torch.tensor(1.0))})
    with pytest.raises(ResultError, match=r"'(acc|loss)' is .* in step 2, though it was one number before"):
        meters.update({"acc": later, **others})


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float32])
def test_integers_beside_short_floats_are_not_rounded(kind):
    means = RunningMeans()
    means.update({"loss": torch.tensor(0.5, dtype=kind), "points": torch.tensor(16_777_217)})
    means.update({"loss": torch.tensor(0.5, dtype=kind), "points": torch.tensor(16_777_219)})
    assert means.means() == {"loss": 0.5, "points": 16_777_218}


def test_weights_of_short_floats_are_not_rounded_either():
    means = RunningMeans()
    means.update({"a": torch.tensor(1.0), "b": torch.tensor(2.0)}, {"a": torch.tensor(3.0).half(), "b": 70_001})
    means.update({"a": torch.tensor(1.0), "b": torch.tensor(5.0)}, {"a": torch.tensor(3.0).half(), "b": 70_001})
    assert means.means() == {"a": 1.0, "b": 3.5}
