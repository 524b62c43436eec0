"""A set that is walked several times in an epoch."""

from collections.abc import Iterator
from itertools import chain
from typing import Any

from vision3d_engine.core.errors import ConfigError
from vision3d_engine.core.tree import describe


class Repeated:
    """What a sampler draws so often in an epoch, anew each time; all else is the sampler's own.

    Attributes:
        once: the sampler.
        repeat: how often.

    Args:
        sampler: of samples, or of batches, which then belong to one pass each.
        repeat: how often.
    """

    def __init__(self, sampler: Any, repeat: int) -> None:
        self.once, self.repeat = sampler, repeat

    def __getattr__(self, name: str) -> Any:
        if name in {"once", "repeat"} or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.once, name)

    def __len__(self) -> int:
        return len(self.once) * self.repeat

    def __iter__(self) -> Iterator[Any]:
        return chain.from_iterable(self.once for _ in range(self.repeat))


def repeated(sampler: Any, repeat: int) -> Any:
    """Return a sampler of the user's that is drawn from so often in an epoch; None stays None.

    Raises:
        ConfigError: for one that has no length, which is read as it goes.
    """
    if sampler is None or repeat == 1:
        return sampler
    if not hasattr(sampler, "__len__"):
        message = f"repeat={repeat} needs the length of a pass, and {type(sampler).__name__} has no __len__"
        raise ConfigError(f"{message}. Give it one, or let it repeat by itself")
    return Repeated(sampler, repeat)


def check_repeat(repeat: Any, is_iterable: bool) -> None:
    """Refuse what is no number of passes.

    Raises:
        ConfigError: naming what was given.
    """
    if type(repeat) is not int or repeat < 1:
        message = f"repeat is {describe(repeat)}: an epoch walks the set so many times, a whole number of at least 1"
        raise ConfigError(f"{message}. Leave it out to walk it once")
    if is_iterable and repeat > 1:
        message = f"repeat={repeat} needs samples that are loaded by index, and the data set is iterable"
        raise ConfigError(f"{message}. Let its __iter__ repeat them, or train by IterBasedTrainer")
