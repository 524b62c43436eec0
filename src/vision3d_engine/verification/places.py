"""Where a run can be killed, and which of these places are tried."""

import random
import signal
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

# In so many epochs a run is cut, so that there is one with epochs before and behind it.
EPOCHS = 3
# The moments right before a step's own code runs.
STEPS = {"before_train_step": "train_step", "before_val_step": "val_step"}
# First those between which a run saves, or begins something anew.
_ORDER = (
    "train_step",
    "val_step",
    "after_val_epoch",
    "before_train_epoch",
    "after_train_epoch",
    "after_train_step",
    "before_val_epoch",
    "before_train_step",
    "after_backward",
    "after_val_step",
    "before_val_step",
    "after_log",
    "before_train",
    "after_train",
)
_BEHIND = {
    "after_train_epoch": " (between training and validation)",
    "after_val_epoch": " (between validation and checkpoint)",
    "before_train_epoch": " (between checkpoint and first step)",
}


@dataclass(frozen=True)
class Place:
    """A moment of a run: a hook or a step by name, its epoch and iteration, 0 where it has none.

    Attributes:
        val_set: the validation set, where several are registered.
    """

    moment: str
    epoch: int = 0
    iteration: int = 0
    val_set: str | None = None

    def __str__(self) -> str:
        epoch = f", epoch {self.epoch}" if self.epoch else ""
        of = f" of '{self.val_set}'" if self.val_set else ""
        return self.moment + epoch + (f", iteration {self.iteration}{of}" if self.iteration else "")


@dataclass(frozen=True)
class Note:
    """The bits of a run at one place, by part and name."""

    place: Place
    parts: dict[str, Any]


@dataclass(frozen=True)
class Kill:
    """The place at which a run ends, and the signal: SIGKILL for its process, SIGTERM for all of its group."""

    place: Place
    by: str

    def __str__(self) -> str:
        group = "" if self.number == signal.SIGKILL else " to the process group"
        return f"{self.by}{group} in {self.place}{_BEHIND.get(self.place.moment, '')}"

    @property
    def number(self) -> signal.Signals:
        """The signal itself."""
        return signal.Signals[self.by]


def choose(straight: Sequence[Note], kills: int, seed: int) -> list[Kill]:
    """Return places of all kinds by turns, and by turns the two signals; when all kinds have had their turn, again.

    Args:
        straight: the notes of a whole run.
        kills: how many places.
        seed: chooses among the places of one kind.
    """
    places, chance = _by_moment(straight[:-1]), random.Random(seed)  # noqa: S311  no secret
    moments = [moment for moment in _ORDER if moment in places]
    found = []
    for number in range(kills):
        again, index = divmod(number, len(moments))
        found.append(Kill(chance.choice(places[moments[index]]), ("SIGKILL", "SIGTERM")[(index + again) % 2]))
    return found


def _by_moment(notes: Sequence[Note]) -> dict[str, list[Place]]:
    """Return places by moment: of epochs before the last, and behind the first, where there are any.

    What is lost there had time to come, and has time to show. Only the beginning of an epoch is that of the last one.
    """
    found = defaultdict(list)
    for place in (note.place for note in notes):
        found[place.moment].append(place)
        if place.moment in STEPS:
            found[STEPS[place.moment]].append(replace(place, moment=STEPS[place.moment]))
    last = max(place.epoch for place in found["before_train_step"])
    chosen = {
        moment: _between(1, places, last) or _between(-1, places, last) or places for moment, places in found.items()
    }
    # A resume from an epoch behind the one before it meets what that one has added (groups, unfrozen layers).
    if late := _between(last - 1, found["before_train_epoch"], last + 1):
        chosen["before_train_epoch"] = late
    return chosen


def _between(first: int, places: list[Place], last: int) -> list[Place]:
    return [place for place in places if first < place.epoch < last]
