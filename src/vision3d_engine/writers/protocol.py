"""What the engine tells whoever writes the numbers of a run."""

from collections.abc import Mapping, Sequence
from typing import Any


class MetricWriter:
    """Receives the numbers of a run: subclass it, override what you want, and hand it to ``trainer.add_writer``.

    On the main process only. Methods are called one at a time, all but `figures` in a thread, many calls in a row, so
    they may take their time. An exception is said once and costs what the call was about, not the run. A `step` counts
    training batches, epochs in validation, or what the user has chosen (``trainer.curve_axis``, `write_event`).
    """

    def scalars(
        self, phase: str, values: Mapping[str, float], step: int, position: Mapping[str, Any], time: float
    ) -> None:
        """Write the numbers of one phase at one step.

        Args:
            phase: ``"train"``, ``"val"``, or what the user has called `write_event` with.
            values: numbers by name.
            step: place on the axis.
            position: more about the moment: the counters ``epoch``, ``total_steps`` (training batches), ``updates``
                and, where known, ``samples``; of the training also ``iteration`` and ``lr``, and of several parameter
                groups the learning rate of each, as ``lr/NAME``.
            time: when they were handed in, in seconds since 1970.
        """

    def row(self, phase: str, values: Mapping[str, float], position: Mapping[str, Any], time: float) -> None:
        """Write numbers that belong on no curve: the means of a whole training epoch (phase ``"train_epoch"``)."""

    def step_values(
        self, epoch: int, before: int, iterations: Sequence[int], keys: Sequence[str], values: Sequence[float]
    ) -> None:
        """Write what single training steps of an epoch have returned, to the bit.

        Args:
            epoch: the epoch.
            before: training batches before the epoch.
            iterations: which steps of it.
            keys: names of the values.
            values: of each step in turn one value a key.
        """

    def points(self, tag: str, points: Sequence[Any], colors: Sequence[Any] | None, step: int) -> None:
        """Write clouds, each an array ``(N, 3)``, with colours ``(N, 3)`` in uint8 each, or None."""

    def lines(self, tag: str, points: Any, colors: Any, edges: Any, edge_colors: Any, step: int) -> None:
        """Write points that are joined by lines, such as correspondences.

        Args:
            tag: what they are called.
            points: array ``(N, 3)``.
            colors: ``(N, 3)`` in uint8.
            edges: ``(M, 2)``, which two points each line joins.
            edge_colors: ``(M, 3)`` in uint8.
            step: place on the axis.
        """

    def images(self, tag: str, images: Any, step: int, dataformats: str) -> None:
        """Write images, 0 to 1 or 0 to 255 as uint8, with the axes that ``dataformats`` names."""

    def figures(self, tag: str, figure: Any, step: int) -> None:
        """Write a figure of matplotlib."""

    def histograms(self, tag: str, values: Any, step: int) -> None:
        """Write how values are distributed."""

    def text(self, tag: str, text: str, step: int) -> None:
        """Write a text."""

    def flush(self) -> None:
        """Hand on what was written; called after each row of calls, at most five times a second, and for `position`."""

    def position(self) -> Any:
        """Return where the writer stands, as plain data for a checkpoint; None if it cannot go back."""

    def cut_back(self, position: Any, step: int) -> None:
        """Forget what was written after a checkpoint, since a resumed run writes it again.

        Args:
            position: what `position` returned when the checkpoint was saved; None when it holds nothing of this writer.
            step: training batches until then.
        """

    def close(self) -> None:
        """Close what is open; called at the end of a run. A later call opens it again."""
