"""Times and cadences as people write them."""

import pytest

from tests.toys import ToyEpochTrainer, settings
from vision3d_engine import ConfigError
from vision3d_engine.core.durations import parse_cadence, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90 s", 90),
        ("10 min", 600),
        ("11.5 h", 41400),
        ("2d", 172800),
        ("1:30", 5400),
        ("00:20:05", 1205),
        ("1-00:00:00", 86400),
    ],
)
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "cadence"),
    [
        ("1 epoch", (1, "epoch")),
        ("epoch", (1, "epoch")),
        ("3 epochs", (3, "epoch")),
        ("500 iterations", (500, "iteration")),
        ("10 min", (600, "second")),
        ("2 hours", (7200, "second")),
    ],
)
def test_cadences(text, cadence):
    assert parse_cadence(text) == cadence


@pytest.mark.parametrize("text", ["", "often", "0 epochs", "1.5 iterations", "-3 min", "5", "0 s"])
def test_what_is_no_cadence_says_what_is(text, tmp_path):
    with pytest.raises(
        ConfigError, match=r"cfg\.trainer\.save_every is .*such as '1 epoch', '500 iterations' or '10 min'"
    ):
        ToyEpochTrainer(settings(tmp_path, save_every=text))


def test_what_is_no_duration_says_what_is(tmp_path):
    with pytest.raises(ConfigError, match=r"cfg\.trainer\.max_time is 'soon'; .*such as '90 s', '10 min'"):
        ToyEpochTrainer(settings(tmp_path, max_time="soon"))
