"""Devices; accelerators are faked."""

from types import SimpleNamespace

import pytest
import torch

from tests.toys import ToyEpochTrainer, settings
from vision3d_engine import ConfigError
from vision3d_engine.distributed.launch.device import choose_device


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


@pytest.fixture
def accelerators(monkeypatch):
    """Return a function that lets torch see so many accelerators, and the list of those that were made current."""
    chosen = []
    module = SimpleNamespace(set_device=chosen.append)

    def see(count):
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
        monkeypatch.setattr(torch.accelerator, "device_count", lambda: count)
        monkeypatch.setattr(torch, "get_device_module", lambda device: module)
        return chosen

    return see


@pytest.mark.parametrize(
    ("name", "count", "local_rank", "index"), [(None, 4, 2, 2), ("cuda", 1, 2, 0), ("cuda:3", 4, 2, 3)]
)
def test_a_process_takes_the_accelerator_of_its_number_or_the_only_one_or_the_named_one(
    name, count, local_rank, index, accelerators
):
    chosen = accelerators(count)
    assert choose_device(name, local_rank) == torch.device("cuda", index)
    assert chosen == [torch.device("cuda", index)]


@pytest.mark.parametrize(
    ("local_rank", "message"),
    [(2, "process 2 of this machine, counted from 0, has no device: there are 2 x cuda"), (None, "set LOCAL_RANK")],
)
def test_a_process_without_a_device_of_its_own_is_an_error_that_says_what_to_set(local_rank, message, accelerators):
    chosen = accelerators(2)
    with pytest.raises(ConfigError, match=message):
        choose_device(None, local_rank)
    assert chosen == []
