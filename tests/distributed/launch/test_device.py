"""Devices."""

import pytest

from tests.toys import ToyEpochTrainer, settings
from vision3d_engine import ConfigError


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("gpu", "device 'gpu' is not a device that torch knows"),
        ("xpu:99", "device 'xpu:99' is not on this machine, which has"),
    ],
)
def test_a_device_that_is_not_there_is_an_error_that_says_what_is(device, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        ToyEpochTrainer(settings(tmp_path, device=device))
