"""The loaders that a trainer is given: one to train, and one to validate or several by name."""

from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any

from vision3d_engine.core.errors import RegistrationError
from vision3d_engine.core.tree import describe
from vision3d_engine.data.resumable_loader import ResumableLoader


def sets_of(val_loader: Any) -> dict[str | None, Any]:
    """Return the validation loaders by the names of their sets; a single one under None; of none, nothing."""
    if val_loader is None:
        return {}
    return dict(val_loader) if isinstance(val_loader, Mapping) else {None: val_loader}


def title_of(purpose: str, name: str | None = None) -> str:
    """Return what a loader is called in messages: ``validation loader``, or ``validation loader 'hard'``."""
    return f"{purpose} loader" if name is None else f"{purpose} loader '{name}'"


def check_loaders(train_loader: Any, val_loader: Any) -> None:
    """Check what is registered.

    Raises:
        RegistrationError: saying which loader cannot be one, which name cannot be a set's, and what to do.
    """
    if isinstance(train_loader, Mapping):
        message = f"register_loader got {describe(train_loader)} as training loader; only validation has sets by name. "
        raise RegistrationError(message + "Give it one iterable of dicts, such as a DataLoader over all training data")
    _refuse_no_loader("training loader", train_loader)
    check_sets(val_loader)
    sets = {f"validation set '{name}'" if name else "validation": each for name, each in sets_of(val_loader).items()}
    _refuse_shared_iterators({"training": train_loader, **sets})


def check_sets(val_loader: Any) -> None:
    """Check the validation loader, or the loaders by name.

    Raises:
        RegistrationError: saying which name or loader cannot be one.
    """
    sets = sets_of(val_loader)
    if not sets and val_loader is not None:
        message = "register_loader got an empty dict of validation loaders; it needs one at least: {'easy': loader}"
        raise RegistrationError(message)
    for name, loader in sets.items():
        if isinstance(val_loader, Mapping):
            _refuse_wrong_name(name)
        _refuse_no_loader(title_of("validation", name), loader)


def _refuse_wrong_name(name: Any) -> None:
    """Refuse what cannot stand in front of the keys of a summary."""
    if not isinstance(name, str) or not name.strip() or "/" in name:
        message = (
            f"register_loader got a validation set named {name!r}; a name must be a text without '/', since it stands "
            "in front of its numbers (NAME/loss): {'easy': loader, 'hard': loader}"
        )
        raise RegistrationError(message)


def _refuse_no_loader(title: str, loader: Any) -> None:
    if not hasattr(loader, "__iter__") or isinstance(loader, Mapping | str | bytes):
        message = f"register_loader got {describe(loader)} as {title}; it must be an iterable of dicts"
        raise RegistrationError(message)


def _refuse_shared_iterators(loaders: Mapping[str, Any]) -> None:
    """Refuse one loader for two purposes when it has a single iterator that both would move."""
    for (first, loader), (second, other) in combinations(loaders.items(), 2):
        if loader is other and _has_one_iterator(loader):
            message = (
                f"register_loader got the same {type(loader).__name__} for {first} and {second}, which has one "
                "iterator only, so that each would move the other's place. Build two loaders, or use build_dataloader"
            )
            raise RegistrationError(message)


def _has_one_iterator(loader: Any) -> bool:
    reader = ResumableLoader(loader)
    keeps_one = getattr(loader, "persistent_workers", False) or reader.is_stateful
    return isinstance(loader, Iterator) or (keeps_one and not reader.is_positioned)
