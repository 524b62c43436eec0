"""The loaders of a run, each made once."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from vision3d_engine.data.loader_sets import sets_of, title_of
from vision3d_engine.data.resumable_loader import ResumableLoader


class LoaderCache:
    """The loaders of a trainer or tester by what they are for; each is made once, so that its workers are kept.

    Args:
        device: where steps run.
        rank: number of this process.
        size: number of processes.
        say: takes a message and its level.
        readers: makers of what reads the loaders of some purposes otherwise than `ResumableLoader` does.
    """

    def __init__(
        self,
        device: torch.device,
        rank: int,
        size: int,
        say: Callable[[str, str], None],
        readers: Mapping[str, Callable[..., ResumableLoader]],
    ) -> None:
        self._world = (device, rank, size)
        self._say, self._readers = say, readers
        self._loaders: dict[tuple[str, str | None], ResumableLoader] = {}

    def get(self, purpose: str, registered: Any, name: str | None = None) -> ResumableLoader:
        """Return the loader for a purpose, such as ``"training"``; one that was exchanged is noticed.

        Args:
            purpose: what it is for.
            registered: what the user registered.
            name: of several for one purpose.
        """
        found = self._loaders.get((purpose, name))
        if found is None or found.registered is not registered:
            is_shared = any(other.registered is registered for other in self._loaders.values())
            options: dict[str, Any] = {"is_shared": is_shared, "name": title_of(purpose, name), "say": self._say}
            make = self._readers.get(purpose, ResumableLoader)
            found = self._loaders[purpose, name] = make(registered, *self._world, **options)
            found.tell_who_reads_what()
        return found

    def get_sets(self, purpose: str, registered: Any) -> dict[str | None, ResumableLoader]:
        """Return the loaders for a purpose by name, a single one under None; those of other names are dropped."""
        sets = sets_of(registered)
        for key in [key for key in self._loaders if key[0] == purpose and key[1] not in sets]:
            self._loaders.pop(key).close()
        return {name: self.get(purpose, loader, name) for name, loader in sets.items()}

    def by_title(self) -> dict[str, ResumableLoader]:
        """Return those that were made, by what they are called in messages."""
        return {title_of(*key): loader for key, loader in self._loaders.items()}

    def clear(self) -> None:
        """Forget all; workers of loaders that nobody else holds end now, and not whenever garbage is collected."""
        for loader in self._loaders.values():
            loader.close()
        self._loaders.clear()
