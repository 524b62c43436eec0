"""Seeds of torch, numpy and python, and torch's determinism switches."""

import hashlib
import random

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed torch (CPU and every accelerator), numpy and python."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  user data sets draw from numpy's global stream
    torch.manual_seed(seed)


def derived_seed(*names: object) -> int:
    """Return a seed that is a function of the names alone, such as (seed, "train", epoch, rank); 63 bits."""
    digest = hashlib.blake2b("/".join(map(str, names)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def seed_worker(worker_id: int) -> None:  # noqa: ARG001  the signature is torch's worker_init_fn
    """Seed numpy and python in a data worker from the seed that torch gave it, which differs by worker and epoch."""
    seed = torch.initial_seed()
    np.random.seed(seed % 2**32)  # noqa: NPY002  user data sets draw from numpy's global stream
    random.seed(seed)


def set_cudnn_deterministic(deterministic: bool) -> None:
    """Choose between repeatable cuDNN kernels and the fastest ones for the shapes seen (``cudnn.benchmark``)."""
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = not deterministic


def setup_engine(seed: int | None = None, cudnn_deterministic: bool = True, debug: bool = False) -> None:
    """Seed everything, set cuDNN's mode and, for ``debug``, autograd's anomaly detection, in one call.

    Kept for scripts that do this without a trainer; anomaly detection stays on until the process ends.
    """
    if seed is not None:
        seed_everything(seed)
    set_cudnn_deterministic(cudnn_deterministic)
    if debug:
        torch.autograd.set_detect_anomaly(mode=True)
