"""What a checkpoint holds beside the model and the optimizer, so that a resumed run goes on as if nothing had been."""

import datetime as dt
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from vision3d_engine.core.errors import CheckpointError, RegistrationError, listed
from vision3d_engine.core.tree import describe
from vision3d_engine.data.source import Source, describe_changes
from vision3d_engine.loop.progress import Progress
from vision3d_engine.loop.session import Session
from vision3d_engine.metrics.moments import Moments

_METHODS = ("state_dict", "load_state_dict")


def has_state(part: Any) -> bool:
    """Tell whether an object can hand out its state and take it back."""
    return all(callable(getattr(part, name, None)) for name in _METHODS)


class Continuation:
    """Collects and restores counters, running means, positions of loaders, the logs' ends and the user's own states.

    Args:
        session: settings, processes and logs.
        progress: the counters.
    """

    def __init__(self, session: Session, progress: Progress) -> None:
        self._session = session
        self._progress = progress
        self._parts: dict[str, Any] = {}
        self._moments: Any = None
        self._loaders: Any = None

    def register(self, name: str, part: Any) -> None:
        """Save and restore an object under a name.

        Raises:
            RegistrationError: when it has no state, or the name is taken.
        """
        if not has_state(part):
            message = f"register_state('{name}') got {describe(part)}; it must have state_dict and load_state_dict"
            raise RegistrationError(message)
        if name in self._parts:
            message = f"register_state('{name}'): this name is taken; choose another one"
            raise RegistrationError(message)
        self._parts[name] = part

    @property
    def parts(self) -> dict[str, Any]:
        """The registered objects by name."""
        return self._parts

    def fingerprint(self, source: Source) -> dict[str, Any]:
        """Return what a resumed run must have in common with the run that it continues."""
        settings = self._session.settings
        own = {"seed": settings.exp.seed, "grad_acc_steps": settings.trainer.grad_acc_steps}
        return own | source.fingerprint(self._session.world.size)

    # ------------------------------------------------------------------------------------------- saving

    def state(self, source: Source, moments: Moments | None) -> dict[str, Any]:
        """Return all of it; to be called by all processes, since each adds its own.

        Args:
            source: the training data.
            moments: running means of the epoch that is open, if one is.
        """
        gather = self._session.world.gather
        is_open = moments is not None
        return {
            "progress": self._progress.state_dict(),
            "places": gather(list(self._progress.place)),
            "moments": gather(moments.state_dict()) if is_open else None,
            "loaders": gather(source.state_dict()) if source.is_stateful else None,
            "fingerprint": self.fingerprint(source),
            "states": {name: part.state_dict() for name, part in self._parts.items()},
            "logs": self._session.writers.positions(),
            "about": self._about(),
        }

    def _about(self) -> dict[str, Any]:
        now = dt.datetime.now(tz=dt.UTC).astimezone().isoformat(timespec="seconds")
        return {"date": now, "torch": torch.__version__, "processes": self._session.world.size}

    # ------------------------------------------------------------------------------------------- restoring

    def check(self, state: Mapping[str, Any], source: Source, name: str) -> None:
        """Refuse a checkpoint of a run with other data.

        Raises:
            CheckpointError: naming both values.
        """
        changes = describe_changes(state.get("fingerprint") or {}, self.fingerprint(source))
        if not changes:
            return
        what = f"'{name}' belongs to a run with other data: {'; '.join(changes)}. "
        if not self._session.settings.trainer.allow_changed_data:
            fix = "Give the run what it had, start anew in another folder, or add --allow_changed_data to go on anyway"
            raise CheckpointError(what + fix)
        self._session.logger.warn(what + "Going on anyway, so the run is no longer an exact continuation")

    def restore(self, state: Mapping[str, Any], source: Source) -> None:
        """Take over a state; one of an older engine holds less, which begins at the next epoch."""
        self._progress.load_state_dict(state.get("progress") or {})
        rank, places = self._session.world.rank, state.get("places") or []
        if rank < len(places):
            self._progress.load_state_dict({"place": places[rank]})
        self._session.writers.cut_back(state.get("logs") or {}, self._progress.total_steps)
        self._moments = _own_share(state.get("moments"), self._session.world.rank, self._session.world.size)
        loaders = state.get("loaders") or []
        if self._session.world.rank < len(loaders):
            source.load_state_dict(loaders[self._session.world.rank])
        self._restore_parts(state.get("states") or {})

    def _restore_parts(self, states: Mapping[str, Any]) -> None:
        for name in self._parts.keys() & states.keys():
            _load(self._parts[name], states[name], name)
        for names, what in (
            (states.keys() - self._parts.keys(), "the checkpoint holds states that nobody registered"),
            (self._parts.keys() - states.keys(), "the checkpoint holds no state for what is registered as"),
        ):
            if names:
                self._session.logger.warn(f"{what}: {listed(sorted(names))}")

    def take_moments(self) -> Iterable[Mapping[str, Any]]:
        """Return, once, the running means with which the open epoch goes on."""
        found, self._moments = self._moments, None
        return found or ()


def _own_share(states: Any, rank: int, size: int) -> list[Any]:
    """Return the means that this process takes over; with another number of processes they are shared out."""
    return list(states or ())[rank::size]


def _load(part: Any, state: Any, name: str) -> None:
    try:
        part.load_state_dict(state)
    except (ValueError, KeyError, RuntimeError, TypeError, AttributeError) as error:
        message = f"state '{name}' of the checkpoint does not fit {describe(part)}: {error}"
        raise CheckpointError(message) from error
