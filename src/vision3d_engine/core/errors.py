"""The one exception family. Every message says what, where, got, expected and what to do."""

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

# What a terminal takes as a command (ECMA-48), such as a change of colour or a link; also one that was cut off.
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]?|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~])?")


def without_escapes(text: str) -> str:
    """Return a text without escape sequences of terminals, which other programs' messages bring along."""
    return _ESCAPES.sub("", text)


class EngineError(Exception):
    """Base of every error that the engine raises on purpose; its message holds no escape sequences of terminals."""

    def __init__(self, *parts: object) -> None:
        super().__init__(*(without_escapes(part) if isinstance(part, str) else part for part in parts))


class ConfigError(EngineError):
    """A setting or a command line argument is unknown or not allowed."""


class RegistrationError(EngineError):
    """A part (model, optimizer, loader, ...) is missing, of the wrong kind, or registered twice."""


class DataError(EngineError):
    """A loader is empty, yields something other than a dict, or a batch cannot be split."""


class SampleError(DataError):
    """A data set raised while it loaded a sample."""


class WorkerError(DataError):
    """A process that loads data has died."""


class ResultError(EngineError):
    """A step returned something that the engine cannot train on or log."""


class SkipBatch(EngineError):  # noqa: N818  a request, no error
    """Raised by a script in ``before_train_step``, in a training step, or in the steps of validations and tests.

    The batch (or the case, in ``eval_step``) is left out, counted, and said with this text; returning None from a step
    does so too. With several processes gradients are averaged over those that are left.
    """


class CheckpointError(EngineError):
    """A checkpoint is missing, unreadable, unsafe, or belongs to another model."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint file is truncated, holds flipped bits, or is no checkpoint at all."""


class FolderError(EngineError):
    """A run folder cannot be made or written."""


class FolderInUseError(FolderError):
    """Another run works in this folder, or has left its checkpoints there."""


class ProcessError(EngineError):
    """Another process of the run has failed, died, or does not come."""


class ReplicaError(EngineError):
    """Processes that train one model hold different weights."""


class NonFiniteError(EngineError):
    """A loss, a gradient or a weight holds NaN or infinity."""


def text_of(error: BaseException) -> str:
    """Return the message of any error, as python prints it: one of a script's own may fail to tell it."""
    try:
        return str(error)
    except Exception:  # noqa: BLE001  whatever the script raises
        return "<exception str() failed>"


def add_note(error: BaseException, note: str) -> None:
    """Add a note to any error, also to one of a script's own that takes no attributes, such as a frozen dataclass."""
    BaseException.__setattr__(error, "__notes__", [*getattr(error, "__notes__", ()), note])


def did_you_mean(name: str, known: Iterable[str], similarity: float = 0.6) -> str:
    """Return ``"; did you mean 'x'?"`` for the nearest other name, whatever its case; empty when none is near."""
    by_lower_case = {each.lower(): each for each in map(str, known) if each != name}
    near = get_close_matches(name.lower(), list(by_lower_case), n=1, cutoff=similarity)
    return f"; did you mean '{by_lower_case[near[0]]}'?" if near else ""


def listed(names: Iterable[object]) -> str:
    """Return the names joined by commas, or ``"none"``, for use in a message."""
    return ", ".join(str(name) for name in names) or "none"


def shortened(names: Sequence[object], most: int = 8) -> str:
    """Return the first names joined by commas, and how many more there are; ``"none"`` when there is none."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return listed(names[:most]) + more
