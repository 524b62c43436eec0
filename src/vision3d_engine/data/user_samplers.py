"""Samplers of the user's: whether they know their process, and what they draw under the seed of an epoch."""

import contextlib
import random
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch

from vision3d_engine.core.seeding import derived_seed, seed_host

_MARKS = ("num_replicas", "world_size", "rank")
_GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
_FIRST_SEEDS: WeakKeyDictionary[torch.Generator, int] = WeakKeyDictionary()


def mark_of_process(sampler: Any) -> str | None:
    """Return the attribute by which a sampler, or the one inside it, shows that it yields the share of one process."""
    parts = (sampler, getattr(sampler, "sampler", None))
    return next((name for part in parts for name in _MARKS if hasattr(part, name)), None)


def knows_its_process(sampler: Any) -> bool:
    """Tell whether a sampler has been divided by itself, or has no length and is read as it goes."""
    return not hasattr(sampler, "__len__") or mark_of_process(sampler) is not None


def announce_to(sampler: Any, epoch: int) -> None:
    """Tell a sampler, or the one inside a batch sampler, which epoch comes."""
    for part in (sampler, getattr(sampler, "sampler", None)):
        announce = getattr(part, "set_epoch", None)
        if callable(announce):
            announce(epoch)


def drawn_by(sampler: Iterable[Any], seed: int) -> Iterable[Any]:
    """Return what a sampler yields when it draws from generators with this seed; the training's are left alone.

    A generator of its own is seeded too, as a function of the seed that the script has given it.
    """
    if not hasattr(sampler, "__len__"):
        return sampler
    with _seeded(seed):
        for generator in own_generators(sampler):
            _seed_own(generator, seed)
        return list(sampler)


def fingerprint_of(sampler: Any) -> dict[str, Any]:
    """Return what the order that a sampler draws is a function of."""
    seeds = [_first_seed(each) for each in own_generators(sampler) if isinstance(each, torch.Generator)]
    draws = {"draws": sampler.num_samples} if isinstance(getattr(sampler, "num_samples", None), int) else {}
    return {"order": type(sampler).__name__} | draws | ({"seeds of its generators": seeds} if seeds else {})


def own_generators(sampler: Any) -> list[Any]:
    """Return the generators that a sampler keeps for itself, also those of samplers inside it."""
    found: dict[int, Any] = {}
    _search(sampler, found, set())
    return list(found.values())


def _search(part: Any, found: dict[int, Any], seen: set[int]) -> None:
    """Look for generators in a sampler, in samplers inside it, and in its lists and dicts; not in data sets."""
    if id(part) in seen:
        return
    seen.add(id(part))
    if isinstance(part, _GENERATORS):
        found[id(part)] = part
    elif isinstance(part, Mapping | list | tuple):
        for member in part.values() if isinstance(part, Mapping) else part:
            _search(member, found, seen)
    elif hasattr(part, "__dict__") and hasattr(part, "__iter__") and not hasattr(part, "__getitem__"):
        for member in vars(part).values():
            _search(member, found, seen)


def _seed_own(generator: Any, seed: int) -> None:
    if isinstance(generator, torch.Generator):
        generator.manual_seed(derived_seed(seed, _first_seed(generator)))
    elif isinstance(generator, np.random.Generator):
        kind: Any = type(generator.bit_generator)
        generator.bit_generator.state = kind(seed).state
    elif isinstance(generator, np.random.RandomState):
        generator.seed(seed & 0xFFFFFFFF)
    else:
        generator.seed(seed)


def _first_seed(generator: torch.Generator) -> int:
    """Return the seed that a generator had before it was ever seeded here."""
    return _FIRST_SEEDS.setdefault(generator, generator.initial_seed())


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Run with the host's generators seeded, and put them back afterwards."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002  the user's draws
    seed_host(seed)
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        random.setstate(states[2])
