"""The device of this process."""

import torch

from vision3d_engine.core.errors import ConfigError


def choose_device(name: str | None, local_rank: int) -> torch.device:
    """Return the named device, or this process's accelerator, or the CPU; and make it the current one.

    Args:
        name: such as ``cuda:1``; one without an index means that of this process.
        local_rank: number of this process on its machine.

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
    if device.type in {"cuda", "xpu"}:
        own = local_rank if torch.accelerator.device_count() > 1 else 0  # a launcher may show each process its own only
        device = torch.device(device.type, own if device.index is None else device.index)
        torch.get_device_module(device).set_device(device)
    return device


def _check_device(device: torch.device, accelerator: torch.device | None) -> None:
    """Refuse a device that this machine does not have."""
    if device.type in {"cpu", "meta"}:
        return
    count = torch.accelerator.device_count() if accelerator is not None else 0
    if accelerator is None or accelerator.type != device.type or (device.index or 0) >= count:
        here = f"{count} x {accelerator.type}" if accelerator is not None else "the CPU only"
        message = f"device '{device}' is not on this machine, which has {here}; leave --device out or use --device cpu"
        raise ConfigError(message)
