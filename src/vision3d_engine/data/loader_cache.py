"""The loaders of a run, each made once."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from vision3d_engine.core.errors import RegistrationError
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
        self._loaders: dict[str, ResumableLoader] = {}

    def get(self, purpose: str, registered: Any) -> ResumableLoader:
        """Return the loader for a purpose, such as ``"training"``; one that was exchanged is noticed."""
        found = self._loaders.get(purpose)
        if found is None or found.registered is not registered:
            is_shared = any(other.registered is registered for other in self._loaders.values())
            options: dict[str, Any] = {"is_shared": is_shared, "name": f"{purpose} loader", "say": self._say}
            make = self._readers.get(purpose, ResumableLoader)
            found = self._loaders[purpose] = make(registered, *self._world, **options)
            found.tell_who_reads_what()
        return found

    def clear(self) -> None:
        """Forget all; workers of loaders that nobody else holds end now, and not whenever garbage is collected."""
        for loader in self._loaders.values():
            loader.close()
        self._loaders.clear()


def refuse_shared_iterator(train_loader: Any, val_loader: Any) -> None:
    """Refuse one loader for training and validation when it has a single iterator that both would move.

    Raises:
        RegistrationError: saying what to do.
    """
    if train_loader is not val_loader or ResumableLoader(train_loader).is_positioned:
        return
    if getattr(train_loader, "persistent_workers", False) or ResumableLoader(train_loader).is_stateful:
        message = (
            f"register_loader got the same {type(train_loader).__name__} for training and validation, which has one "
            "iterator only, so that each would move the other's place. Build two loaders, or use build_dataloader"
        )
        raise RegistrationError(message)
