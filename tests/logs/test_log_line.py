"""How fast a log line says that a run is."""

import pytest
import torch

from vision3d_engine.logs.log_line import throughput_text

CPU = torch.device("cpu")


def throughput(rate, steps_left=None, samples=None, device=CPU):
    return throughput_text(rate, steps_left, samples, device)


@pytest.mark.parametrize(
    ("rate", "text"),
    [
        (3.2, "3.2 it/s"),
        (0.01234, "0.0123 it/s"),
        (123.456, "123 it/s"),
        (999.4, "999 it/s"),
        (999.6, "1,000 it/s"),
        (1234.5, "1,234 it/s"),
        (1e9, "1,000,000,000 it/s"),
    ],
)
def test_a_rate_has_three_digits_or_all_those_before_the_point(rate, text):
    assert throughput(rate) == text


def test_all_that_is_known_is_told():
    assert throughput(3.2, 11_914, 8) == "3.2 it/s, 25.6 samples/s, eta 1:02:03"
    assert throughput(250.0, None, 32) == "250 it/s, 8,000 samples/s"


@pytest.mark.parametrize(
    ("steps", "text"),
    [
        (0, "0:00:00"),
        (59.6, "0:01:00"),
        (3599.7, "1:00:00"),
        (86_399, "23:59:59"),
        (86_399.6, "1 d 0:00:00"),
        (3 * 86_400 + 3_723, "3 d 1:02:03"),
        (400 * 86_400, "400 d 0:00:00"),
    ],
)
def test_the_time_left_is_rounded_to_seconds_without_sixty_of_anything(steps, text):
    assert throughput(1.0, steps) == f"1 it/s, eta {text}"


def test_the_peak_memory_of_an_accelerator_is_told(monkeypatch):
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: int(4.1 * 2**30))
    assert throughput(1.0, device=torch.device("cuda")) == "1 it/s, 4.1 GB"
