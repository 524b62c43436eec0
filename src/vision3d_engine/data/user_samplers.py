"""Samplers of the user's: whether they know their process, and what they draw under the seed of an epoch."""

import contextlib
import hashlib
import random
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
import torch

from vision3d_engine.core.errors import DataError
from vision3d_engine.core.portable import GeneratorState
from vision3d_engine.core.seeding import derived_seed, kept_generators, seed_host

_MARKS = ("num_replicas", "world_size", "rank")
_KEPT = 2
_OTHER_ORDER = (
    "the sampler {} draws another order than that with which the epoch began before the resume: it depends on what no "
    "checkpoint holds (weights that the training changes, a counter, a generator that it hides). Let its order follow "
    "from its generators and set_epoch(epoch) alone, and change it between epochs only (before_train_epoch); save at "
    "the ends of epochs (trainer.save_every: 1 epoch); or add --allow_changed_data to go on with the other order"
)
_GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)


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
    """Return what a sampler yields when it draws from generators with this seed, as many as its length says.

    Generators of its own are seeded too, those of torch as a function of the seed that the script has given them. All
    stand afterwards where they stood, since the training, or a registered state, may draw from them as well.
    """
    if not hasattr(sampler, "__len__"):
        return sampler
    own = own_generators(sampler)
    with _put_back(own), _seeded(seed):
        for number, generator in enumerate(own):
            _seed_own(generator, seed, number)
        return list(islice(sampler, len(sampler) + 1))  # pyright: ignore[reportArgumentType]


class DrawnOrders:
    """Knows what samplers of the user's have drawn for the last epochs, so that a resume notices another order.

    An order may depend on what no checkpoint holds: on weights that the training changes, a counter, a closure.
    """

    def __init__(self) -> None:
        self._digests: dict[int, str] = {}
        self._expected: dict[int, str] = {}

    def draw(self, sampler: Iterable[Any], seed: int) -> Iterable[Any]:
        """Return what a sampler draws; see `drawn_by`.

        Raises:
            DataError: when it drew something else for this epoch before the resume.
        """
        order = drawn_by(sampler, seed)
        if not isinstance(order, list):
            return order
        digest = self._digests[seed] = hashlib.blake2b(repr(order).encode(), digest_size=8).hexdigest()
        self._digests = dict(list(self._digests.items())[-_KEPT:])
        if self._expected.get(seed, digest) != digest:
            raise DataError(_OTHER_ORDER.format(type(sampler).__name__))
        return order

    def state_dict(self) -> dict[int, str]:
        """Return digests of the last orders, by seed; also of those that are expected."""
        return self._expected | self._digests

    def load_state_dict(self, state: Mapping[int, str]) -> None:
        """Expect these orders, when they are drawn again."""
        self._expected = dict(state)


def fingerprint_of(sampler: Any) -> dict[str, Any]:
    """Return what the order that a sampler draws is a function of."""
    seeds = [each.initial_seed() for each in own_generators(sampler) if isinstance(each, torch.Generator)]
    known = {"draws": "num_samples", "batch_points": "batch_points", "most_samples": "most_samples"}
    draws = {key: value for key, name in known.items() if isinstance(value := getattr(sampler, name, None), int)}
    order = {"order": type(getattr(sampler, "once", sampler)).__name__, "repeat": getattr(sampler, "repeat", 1)}
    return order | draws | ({"seeds of its generators": seeds} if seeds else {})


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


def _seed_own(generator: Any, seed: int, number: int) -> None:
    seed = derived_seed(seed, number) if number else seed
    if isinstance(generator, torch.Generator):
        generator.manual_seed(derived_seed(seed, generator.initial_seed()))
    elif isinstance(generator, np.random.Generator):
        kind: Any = type(generator.bit_generator)
        generator.bit_generator.state = kind(seed).state
    elif isinstance(generator, np.random.RandomState):
        generator.seed(seed & 0xFFFFFFFF)
    else:
        generator.seed(seed)


@contextlib.contextmanager
def _put_back(generators: list[Any]) -> Iterator[None]:
    """Let generators stand afterwards where they stand now."""
    parts = [GeneratorState(generator) for generator in generators]
    states = [part.state_dict() for part in parts]
    try:
        yield
    finally:
        for part, state in zip(parts, states, strict=True):
            part.load_state_dict(state)


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Run with the host's generators seeded, and put them back afterwards."""
    with kept_generators():
        seed_host(seed)
        yield
