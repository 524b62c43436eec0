"""Seeds of torch, numpy and python, and torch's determinism switches.

Everything random in a run is a function of a position: (seed, phase, epoch, batch or sample). So there is no stream of
random numbers to save, and a resumed run draws what the uninterrupted one would have drawn.
"""

import _random
import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

_CPU = torch.device("cpu")
_MASK = 2**64 - 1
# numpy's and python's global generators; the bound methods save a microsecond a sample over random.seed().
_PYTHON = random._inst  # type: ignore[attr-defined]  # noqa: SLF001
_NUMPY = np.random.mtrand._rand  # type: ignore[attr-defined]  # noqa: SLF001


def seed_everything(seed: int) -> None:
    """Seed torch (CPU and every accelerator), numpy and python."""
    seed_host(seed)
    torch.manual_seed(seed)


def derived_seed(*names: object) -> int:
    """Return a seed that is a function of the names alone, such as (seed, "train", epoch, rank); 63 bits."""
    digest = hashlib.blake2b("/".join(map(str, names)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def data_seed(seed: int, phase: str, *position: object) -> int:
    """Return the seed of order and samples of a pass over data in a run with a seed; the same on all processes."""
    return derived_seed(seed, "data", phase, *position)


def seed_at(base: int, position: int) -> int:
    """Return the seed of one position under a base seed, in half a microsecond; 63 bits (splitmix64, Steele 2014)."""
    mixed = (base + position * 0x9E3779B97F4A7C15) & _MASK
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
    return (mixed ^ (mixed >> 31)) >> 1


def seed_host(seed: int) -> None:
    """Seed the generators of the host (torch's CPU one, numpy's, python's) in about 7 us, a tenth of the usual way.

    ``torch.manual_seed`` also visits every accelerator, which a data worker must not do.
    """
    torch.default_generator.manual_seed(seed)
    _NUMPY.seed(seed & 0xFFFFFFFF)
    _random.Random.seed(_PYTHON, seed)
    _PYTHON.gauss_next = None  # pyright: ignore[reportAttributeAccessIssue]  the second number of a pair


def host_states() -> dict[str, bytes]:
    """Return the states of the host's generators by library, for comparison."""
    numbers = np.random.get_state(legacy=False)  # noqa: NPY002  the global generator
    return {
        "torch": torch.get_rng_state().numpy().tobytes(),
        "numpy": repr((numbers["state"]["key"].tobytes(), numbers["state"]["pos"])).encode(),  # type: ignore[index]
        "python": repr(random.getstate()).encode(),
    }


@contextmanager
def kept_generators(device: torch.device = _CPU) -> Iterator[None]:
    """Let the generators of the host, and of a device, stand behind a block where they stood before it."""
    generators = [each for each in (torch.default_generator, _device_generator(device)) if each is not None]
    states = [generator.get_state() for generator in generators]
    of_host = np.random.get_state(), random.getstate()  # noqa: NPY002  the global generator
    try:
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        np.random.set_state(of_host[0])  # noqa: NPY002
        random.setstate(of_host[1])


class StepSeeds:
    """Seeds every step of a pass by its number, so that what it draws depends on nothing that ran before.

    Args:
        base: seed of the pass on this process.
        device: its generator is seeded too; the host does not wait for it.
    """

    def __init__(self, base: int, device: torch.device) -> None:
        self._base = base
        self._generator = _device_generator(device)

    def seed(self, step: int) -> None:
        """Seed all generators for one step."""
        seed_host(seed := seed_at(self._base, step))
        if self._generator is not None:
            self._generator.manual_seed(seed)


def _device_generator(device: torch.device) -> torch.Generator | None:
    """Return the default generator of an accelerator, or None for the CPU."""
    if device.type in {"cpu", "meta"}:
        return None
    if device.type == "mps":
        return torch.mps._get_default_mps_generator()  # noqa: SLF001  torch has no public name for it
    return torch.get_device_module(device).default_generators[device.index or 0]


def seed_worker(worker_id: int) -> None:  # noqa: ARG001  the signature is torch's worker_init_fn
    """Seed numpy and python in a data worker from the seed that torch gave it, which differs by worker and epoch."""
    seed = torch.initial_seed()
    np.random.seed(seed % 2**32)  # noqa: NPY002  user data sets draw from numpy's global stream
    random.seed(seed)


def set_cudnn_deterministic(deterministic: bool) -> None:
    """Choose between repeatable cuDNN kernels and the fastest ones for the shapes seen (``cudnn.benchmark``)."""
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = not deterministic


def set_tf32(enabled: bool) -> None:
    """Let matrix products and convolutions in fp32 use TensorFloat-32 on CUDA; False leaves torch's own choice.

    See https://docs.pytorch.org/docs/stable/notes/cuda.html#tensorfloat-32-tf32-on-ampere-and-later-devices.
    """
    if enabled:
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True


def setup_engine(seed: int | None = None, cudnn_deterministic: bool = True, debug: bool = False) -> None:
    """Seed everything, set cuDNN's mode and, for ``debug``, autograd's anomaly detection, in one call.

    Kept for scripts that do this without a trainer; anomaly detection stays on until the process ends.
    """
    if seed is not None:
        seed_everything(seed)
    set_cudnn_deterministic(cudnn_deterministic)
    if debug:
        torch.autograd.set_detect_anomaly(mode=True)
