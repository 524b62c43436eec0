"""What differs first between two runs, and what usually causes it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from vision3d_engine.core.errors import shortened
from vision3d_engine.verification.places import Note, Place

# A resume in the midst of an epoch calls these again, before it takes everything from the checkpoint.
_OPENINGS = ("before_train", "before_train_epoch")
_MOST_NAMED = 3
# Causes come before effects.
_PARTS = ("batch", "random", "results", "gradients", "weights", "optimizer", "schedule", "states")


@dataclass(frozen=True)
class Difference:
    """The first thing in which two runs differ.

    Attributes:
        place: where.
        part: in which part of the notes.
        what: what differs, with both values where they are short.
    """

    place: Place
    part: str
    what: str

    @property
    def cause(self) -> str:
        """What usually causes it, and what to do."""
        return _CAUSES[self.part]

    def __str__(self) -> str:
        return f"at {self.place}: {self.what}"


def first_difference(expected: Sequence[Note], found: Sequence[Note]) -> Difference | None:
    """Return the first difference between a run, or its end, and another one; None where all bits are the same."""
    for left, right in _paired(expected, found):
        ways = [f"{note.place} (step {note.parts['step']})" if note else "its end" for note in (left, right)]
        if left is None or right is None or ways[0] != ways[1]:
            known = left or right or expected[-1]
            return Difference(known.place, "sequence", f"one run comes to {ways[0]}, the other to {ways[1]}")
        for part in _PARTS:
            if left.parts.get(part) != right.parts.get(part):
                return Difference(left.place, part, _said(part, left.parts[part], right.parts[part]))
    return None


def lost_attributes(
    expected: Sequence[Note],
    found: Sequence[Note],
    until: Place | None = None,
    ignored: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """Return the attributes that differ at a place, or at the end, each with what it is in both runs."""
    notes = {_moment(note): note.parts["attributes"] for note in expected}
    compared = [note for note in found if _moment(note) in notes and (until is None or note.place == until)]
    if not compared:
        return {}
    here, there = notes[_moment(compared[-1])], compared[-1].parts["attributes"]
    pairs = {name: (value, there.get(name)) for name, value in here.items() if name not in (ignored or {})}
    return {name: _values(name, *pair) for name, pair in pairs.items() if pair[0] != pair[1]}


def _paired(expected: Sequence[Note], found: Sequence[Note]) -> list[tuple[Note | None, Note | None]]:
    """Pair the notes of two runs from the first one on that the second one does not repeat only to open its epoch."""
    steps = {note.place: note.parts["step"] for note in expected}
    while found and found[0].place.moment in _OPENINGS and steps.get(found[0].place) != found[0].parts["step"]:
        found = found[1:]
    same = [i for i, note in enumerate(expected) if found and note.place == found[0].place]
    exact = [i for i in same if _moment(expected[i]) == _moment(found[0])]
    start = next(iter(exact + same), 0)
    return list(zip_longest(expected[start:], found))


def _moment(note: Note) -> tuple[Place, int]:
    """Return the place and the training steps until then: an epoch may hold several validations."""
    return note.place, note.parts["step"]


def _said(part: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
    """Say what differs in a part."""
    names = [name for name in {**a, **b} if a.get(name) != b.get(name)]
    if part == "batch":
        return f"the batch differs in {_samples(names[0], a.get(names[0]), b.get(names[0]))}"
    if part == "random":
        return f"the generator of {names[0]} is in another state"
    return f"{part} differ: {shortened([_values(name, a.get(name), b.get(name)) for name in names], _MOST_NAMED)}"


def _values(name: str, a: str | None, b: str | None) -> str:
    """Name a value, with what it is in both runs where that is no hash."""
    texts = ["missing" if text is None else text for text in (a, b)]
    return name if any("#" in text for text in texts) else f"{name} (was {texts[0]}, is {texts[1]})"


def _samples(name: str, a: Any, b: Any) -> str:
    """Name an entry of a batch, and the first samples in it that differ."""
    if not (isinstance(a, list) and isinstance(b, list)) or len(a) != len(b):
        return name
    return f"{name}, samples {[number for number, (x, y) in enumerate(zip(a, b, strict=True)) if x != y][:3]}"


_FORGOTTEN = (
    "self.register_state(name, object) saves what has a state_dict, and generators; a hook with state_dict and "
    "load_state_dict is saved by add_hook"
)
NOT_REPEATED = (
    "usual causes: a generator that no seed reaches (random.Random(), np.random.default_rng()), the time, the order of "
    "a set or a folder, or a kernel that is not deterministic (torch.use_deterministic_algorithms)"
)
_CAUSES = {
    "sequence": "the number of batches or epochs depends on something that is not saved, or the run stops by itself",
    "batch": (
        "the data set, or a hook that changes the batch, draws from a generator of its own or follows something that "
        "is not saved. check_determinism(dataset) looks for it; sample_seed() seeds a generator; set_epoch(epoch) of "
        "the data set is the place for what an epoch changes"
    ),
    "random": (
        "a hook or a step draws another number of times, since it follows something that is not saved, or it seeds "
        f"generators by itself. {_FORGOTTEN}"
    ),
    "results": (
        "with this batch and these random numbers, something without a place in the checkpoint has a part in it: a "
        "counter, list or generator of the script, a buffer with persistent=False, an object whose state_dict leaves "
        f"something out, the time; or a kernel is not deterministic (torch.use_deterministic_algorithms). {_FORGOTTEN}"
    ),
    "gradients": (
        "a kernel is not deterministic (torch.use_deterministic_algorithms), or a hook changes gradients by something "
        f"that is not saved. {_FORGOTTEN}"
    ),
    "weights": (
        "a second optimizer or another object with a state that is not registered, an optimizer whose load_state_dict "
        "does not take all that state_dict returns, a buffer with persistent=False (let "
        f"it be saved), or a hook that changes weights by something that is not saved. {_FORGOTTEN}"
    ),
    "optimizer": f"a schedule or a hook that is not registered sets rates or changes its state. {_FORGOTTEN}",
    "schedule": f"something that is not saved moves it on, or its state_dict leaves something out. {_FORGOTTEN}",
    "states": (
        "a registered object is not what its load_state_dict was given: it must take all that state_dict returns, and "
        "no hook may change it by something that is not saved"
    ),
}
