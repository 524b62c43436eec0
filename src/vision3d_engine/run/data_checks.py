"""What is asked of loaders and metrics before the first step, by all processes together."""

from collections.abc import Callable, Mapping
from typing import Any

from vision3d_engine.core.errors import DataError, RegistrationError, listed
from vision3d_engine.data.loader_hints import length_hint
from vision3d_engine.data.loader_sets import title_of
from vision3d_engine.data.resumable_loader import ResumableLoader
from vision3d_engine.distributed.coordination.reductions import by_rank
from vision3d_engine.distributed.world import World


def check_alike(world: World, **registered: tuple[Any, ...]) -> None:
    """Refuse what is not the same on all processes, which would wait for each other.

    Args:
        world: the processes.
        registered: what this one has registered, by what it is.

    Raises:
        RegistrationError: on all of them, naming what each one has.
    """
    gathered = world.gather(registered)
    for what in registered:
        names = [each[what] for each in gathered]
        if len(set(names)) > 1:
            said = by_rank([listed(each) for each in names])
            message = f"the processes have registered different {what.replace('_', ' ')} ({said}): "
            raise RegistrationError(message + "all need the same, in one order")


def check_data(
    training: ResumableLoader,
    sets: Mapping[str | None, ResumableLoader],
    world: World,
    warn: Callable[[str], None],
) -> None:
    """Refuse loaders that are empty on all processes; say where their lengths differ.

    Args:
        training: the training data.
        sets: the validation data by name.
        world: the processes.
        warn: says where lengths differ.

    Raises:
        DataError: for a loader without a batch.
    """
    validation = {title_of("validation", name): loader for name, loader in sets.items()}
    for title, loader in ({title_of("training"): training} | validation).items():
        _check_length(title, loader, world, warn)


def _check_length(title: str, loader: ResumableLoader, world: World, warn: Callable[[str], None]) -> None:
    lengths, totals = zip(*world.gather((loader.length, loader.total_length)), strict=True)
    if set(lengths) == {0}:
        message = f"the {title} is empty: len(loader) is 0. Check the data set, batch_size and drop_last"
        raise DataError(message)
    if (hint := length_hint(loader.name, lengths, totals)) is not None:
        warn(hint)
