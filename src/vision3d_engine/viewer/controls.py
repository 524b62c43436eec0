"""What a person can choose beside the scene: which case of the test, which step of the training."""

from collections.abc import Callable
from functools import partial
from typing import Any

from vision3d_engine.report.cases import By, Cases
from vision3d_engine.report.panels import Panel
from vision3d_engine.results.comparison import number_text
from vision3d_engine.viewer.sources import TrainingSteps

MOST_CASES = 1000
_IN_ORDER = "order of the data"
_PREVIOUS, _NEXT = "previous", "next"
Show = Callable[[Callable[[], list[Panel]]], None]


class CaseControls:
    """Chooses among the cases of a test, sorted by a number; the worst thousand can be looked at.

    Args:
        gui: viser's.
        cases: the cases.
        by: by what they are sorted first.
        show: draws what a function returns.

    Attributes:
        number: by which number they are sorted, a choice.
        first: whether its largest or its smallest come first, a choice.
        place: which of them is shown, a slider from 1 on.
    """

    def __init__(self, gui: Any, cases: Cases, by: By | None, show: Show) -> None:
        self._cases, self._show = cases, show
        self._sorted = cases.sorted(by, MOST_CASES)
        number, order = by or (_IN_ORDER, "largest")
        with gui.add_folder("Cases of the test"):
            self.number = gui.add_dropdown("sorted by", [_IN_ORDER, *cases.numbers], initial_value=number)
            self.first = gui.add_dropdown("first", ["largest", "smallest"], initial_value=order)
            self.place = gui.add_slider("case", 1, max(len(self._sorted), 2), 1, 1)
            turn = gui.add_button_group("turn to", [_PREVIOUS, _NEXT])
            self._text = gui.add_markdown("")
        for choice in (self.number, self.first):
            choice.on_update(lambda _: self._sort())
        self.place.on_update(lambda _: self.show())
        turn.on_click(lambda event: self._turn(1 if event.target.value == _NEXT else -1))

    @property
    def name(self) -> str:
        """The name of the case that is chosen."""
        return self._sorted[min(self.place.value, len(self._sorted)) - 1].name

    def _sort(self) -> None:
        by = None if self.number.value == _IN_ORDER else (self.number.value, self.first.value)
        self._sorted = self._cases.sorted(by, MOST_CASES)
        if self.place.value == 1:
            self.show()
        self.place.value = 1  # which shows it, if it was another one

    def _turn(self, places: int) -> None:
        self.place.value = min(max(self.place.value + places, 1), len(self._sorted))

    def show(self) -> None:
        """Show the case that is chosen, and all its numbers."""
        name = self.name
        numbers = "".join(f"| {key} | {number_text(value)} |\n" for key, value in self._cases.values(name).items())
        self._text.content = f"`{name}`\n\n| number | |\n|---|---|\n{numbers}"
        self._show(partial(self._cases.panels, name))


class StepControls:
    """Chooses among the clouds that a training has written, by tag and step.

    Args:
        gui: viser's.
        training: the clouds.
        show: draws what a function returns.

    Attributes:
        tag: what is shown, a choice.
        place: which step of it, a slider from 1 on.
    """

    def __init__(self, gui: Any, training: TrainingSteps, show: Show) -> None:
        self._training, self._show = training, show
        tags = list(training.steps)
        with gui.add_folder("Steps of the training"):
            self.tag = gui.add_dropdown("tag", tags, initial_value=tags[0])
            self.place = gui.add_slider("step", 1, max(2, *map(len, training.steps.values())), 1, 1)
            self._text = gui.add_markdown("")
        self.tag.on_update(lambda _: self.show())
        self.place.on_update(lambda _: self.show())

    def show(self) -> None:
        """Show the step that is chosen, the last one of the tag where it has fewer."""
        tag = self.tag.value
        steps = self._training.steps[tag]
        place = min(self.place.value, len(steps))
        self._text.content = f"step {steps[place - 1]}, {place} of {len(steps)}"
        self._show(partial(self._training.panels, tag, steps[place - 1]))
