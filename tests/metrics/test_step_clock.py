"""The times of steps: of the host by a clock that the test winds, of a device by events that the test lets pass."""

import pytest
import torch

from vision3d_engine.metrics import step_clock as module
from vision3d_engine.metrics.step_clock import StepClock

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def now(monkeypatch):
    """Return a clock's hand that a test moves."""
    hand = {"s": 100.0}
    monkeypatch.setattr("time.perf_counter", lambda: hand["s"])
    return hand


class Device:
    """Stands in for the events of CUDA: a device whose time and progress a test sets."""

    def __init__(self):
        self.time_ms = 0.0
        self.reached = float("inf")
        self.made = 0
        outer = self

        class Event:
            def __init__(self, enable_timing=False):
                assert enable_timing
                outer.made += 1
                self.at = None

            def record(self):
                self.at = outer.time_ms

            def query(self):
                return self.at <= outer.reached

            def elapsed_time(self, end):
                assert self.query()
                assert end.query(), "read before it has passed: torch would raise"
                return end.at - self.at

        self.Event = Event


@pytest.fixture
def device(monkeypatch):
    device = Device()
    monkeypatch.setattr(torch.cuda, "Event", device.Event)
    return device


def step(clock, data_s=0.0, model_s=0.0, device=None, device_ms=0.0):
    """Walk one step as the runner does."""
    mark = clock.start()
    if device is not None:
        device.time_ms += device_ms
    if mark is not None:
        clock.stop(mark)
    clock.count(data_s, model_s)


def test_a_window_holds_the_means_since_the_last_one_and_the_rate(now):
    clock = StepClock(CPU)
    step(clock, 1.0, 2.0)
    step(clock, 3.0, 4.0)
    now["s"] += 10
    window = clock.interval()
    assert window.times() == {"data": 2.0, "model": 3.0}
    assert window.rate == 0.2
    step(clock, 0.5, 0.25)
    now["s"] += 4
    window = clock.interval()
    assert window.times() == {"data": 0.5, "model": 0.25}
    assert window.rate == 0.25
    assert clock.means() == {"data": 1.5, "model": pytest.approx(6.25 / 3)}
    assert clock.elapsed_s() == 14
    assert clock.first_data_s == 1.0


def test_reading_a_window_changes_no_mean_of_the_pass(now):
    read, unread = StepClock(CPU), StepClock(CPU)
    for number in range(7):
        for clock in (read, unread):
            step(clock, 0.25 * number, 0.5)
        read.interval()
    assert read.means() == unread.means()


def test_a_pass_without_a_step_has_means_of_zero_and_a_window_without_one_divides_by_nothing(now):
    clock = StepClock(CPU)
    assert clock.means() == {"data": 0.0, "model": 0.0}
    window = clock.interval()
    assert window.times() == {"data": 0.0, "model": 0.0}
    assert window.rate > 0


def test_the_wait_for_the_first_batch_of_a_pass_is_no_steady_wait(now):
    """It holds the start of the workers, which no number of workers makes shorter."""
    clock = StepClock(CPU)
    for data_s in (5.0, 1.0, 1.0, 1.0):
        step(clock, data_s)
    window = clock.interval()
    assert window.data_s == 2.0
    assert window.steady_data_s == 1.0
    step(clock, 3.0)
    assert clock.interval().steady_data_s == 3.0


def test_on_the_cpu_no_event_is_made(device):
    clock = StepClock(CPU)
    assert clock.start() is None
    assert device.made == 0


def test_on_cuda_the_time_of_a_step_is_that_of_its_kernels(device):
    clock = StepClock(CUDA)
    for device_ms in (10, 30):
        step(clock, 0.5, 0.001, device, device_ms)
        device.time_ms += 1000  # between two steps, where nothing is measured
    assert clock.interval().times() == {"data": 0.5, "model": pytest.approx(0.02)}
    step(clock, 0.5, 0.001, device, 50)
    assert clock.interval().model_s == pytest.approx(0.05)
    assert clock.means() == {"data": 0.5, "model": pytest.approx(0.03)}


def test_a_step_that_the_device_has_not_finished_is_left_out_and_never_waited_for(device):
    clock = StepClock(CUDA)
    step(clock, 0, 0.001, device, 10)
    device.reached = device.time_ms
    step(clock, 0, 0.001, device, 70)
    assert clock.interval().model_s == pytest.approx(0.01)
    device.reached = float("inf")
    assert clock.means()["model"] == pytest.approx(0.01)


def test_when_no_step_has_been_finished_the_time_is_that_of_the_host(device):
    clock = StepClock(CUDA)
    device.reached = -1
    step(clock, 0, 0.25, device, 10)
    assert clock.interval().model_s == 0.25
    assert clock.means()["model"] == 0.25


def test_between_rare_log_lines_memory_is_bounded_and_the_mean_is_that_of_the_measured_steps(device):
    clock = StepClock(CUDA)
    for _ in range(module._MAX_MEASURED):
        step(clock, 0, 0, device, 10)
    for _ in range(2000):
        step(clock, 0, 0, device, 1000)
    assert device.made == 2 * module._MAX_MEASURED
    assert len(clock._events) == module._MAX_MEASURED
    assert clock.interval().model_s == pytest.approx(0.01)
    assert clock._events == []
    step(clock, 0, 0, device, 20)
    assert clock.interval().model_s == pytest.approx(0.02)


def test_a_mark_whose_step_raised_is_forgotten(device):
    clock = StepClock(CUDA)
    clock.start()
    step(clock, 0, 0, device, 10)
    assert clock.interval().model_s == pytest.approx(0.01)
