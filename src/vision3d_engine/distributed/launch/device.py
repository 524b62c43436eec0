"""The device of this process."""

import torch

from vision3d_engine.core.errors import ConfigError


def find_device(name: str | None) -> torch.device:
    """Return the named device, the accelerator of this machine, or the CPU; without an index unless it is named.

    Args:
        name: such as ``cuda:1``.

    Raises:
        ConfigError: when there is no such device here.
    """
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    try:
        device = torch.device(name) if name else accelerator or torch.device("cpu")
    except RuntimeError as error:
        message = f"device '{name}' is not a device that torch knows; use cpu, cuda, cuda:1, mps, ..."
        raise ConfigError(message) from error
    _check_device(device, accelerator)
    return device


def choose_device(name: str | None, local_rank: int | None) -> torch.device:
    """Return the named device, or this process's accelerator, or the CPU; and make it the current one.

    Args:
        name: such as ``cuda:1``; one without an index means that of this process.
        local_rank: number of this process on its machine; None when it is not known.

    Raises:
        ConfigError: when there is no such device here, or none for this process.
    """
    device = find_device(name)
    if device.type in {"cuda", "xpu"}:
        own = _own_index(device.type, local_rank) if device.index is None else device.index
        device = torch.device(device.type, own)
        torch.get_device_module(device).set_device(device)
    return device


def _own_index(kind: str, local_rank: int | None) -> int:
    """Return which of several devices is this process's; a launcher may also show each process its own only."""
    count = torch.accelerator.device_count()
    if count == 1:
        return 0
    if local_rank is None:
        message = (
            f"which of {count} x {kind} is this process's is not known yet; set LOCAL_RANK, or make the trainer first"
        )
        raise ConfigError(message)
    if local_rank >= count:
        message = (
            f"process {local_rank} of this machine, counted from 0, has no device: there are {count} x {kind}. "
            f"Start {count} processes a machine, set LOCAL_RANK, or show it its own device only (CUDA_VISIBLE_DEVICES)"
        )
        raise ConfigError(message)
    return local_rank


def _check_device(device: torch.device, accelerator: torch.device | None) -> None:
    """Refuse a device that this machine does not have."""
    if device.type in {"cpu", "meta"}:
        return
    count = torch.accelerator.device_count() if accelerator is not None else 0
    if accelerator is None or accelerator.type != device.type or (device.index or 0) >= count:
        here = f"{count} x {accelerator.type}" if accelerator is not None else "the CPU only"
        message = f"device '{device}' is not on this machine, which has {here}; leave --device out or use --device cpu"
        raise ConfigError(message)
