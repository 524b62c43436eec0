"""Semantic segmentation and classification: IoU and accuracy over all points of a set."""

import math
from collections.abc import Iterable, Mapping, Sequence

import torch

from vision3d_engine.core.errors import ResultError
from vision3d_engine.metrics.arguments import is_whole, require
from vision3d_engine.metrics.whole_set import (
    NAN_CLASS,
    Array,
    WholeSetMetric,
    as_classes,
    counts,
    tally,
    warn_of_nan,
)


class ConfusionMatrix(WholeSetMetric):
    """Counts each pair of true and predicted class, and takes IoU and accuracies over all of them.

    Args:
        num_classes: C; classes are 0 to C - 1.
        names: Their names in what ``compute`` returns, in their order or by their numbers; by default their numbers.
        ignore_index: Labels of this value are left out, whatever was predicted there. If it is a class, that class is
            left out of all means too.
    """

    def __init__(
        self,
        num_classes: int,
        names: Sequence[str] | Mapping[int, str] | None = None,
        ignore_index: int | None = None,
    ) -> None:
        expected = "a whole number of classes, 1 or more"
        require(is_whole(num_classes) and num_classes > 0, self, expected, num_classes=num_classes)
        expected = "one whole number or None; map further labels to be ignored onto it"
        require(ignore_index is None or is_whole(ignore_index), self, expected, ignore_index=ignore_index)
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.names = self._names(names)
        # Rows: labels below 0, the classes, labels above, labels to be ignored; columns: predictions, but for the last,
        # which is for NaN.
        self._shape = num_classes + 3, num_classes + 3
        super().__init__(counts=counts(*self._shape))

    def _names(self, names: Sequence[str] | Mapping[int, str] | None) -> tuple[str, ...]:
        """Return a name for each class, or raise an error."""
        numbers = range(self.num_classes)
        if names is None:
            return tuple(map(str, numbers))
        named = (
            dict(enumerate(names)) if isinstance(names, Iterable) and not isinstance(names, Mapping | str) else names
        )
        is_right = isinstance(named, Mapping) and named.keys() == {*numbers} and len({*named.values()}) == len(numbers)
        expected = f"a name for each of {len(numbers)} classes, in a list or by their numbers from 0, no name twice"
        require(is_right, self, expected, names=names)
        return tuple(str(named[each]) for each in numbers)

    def update(self, prediction: Array, label: Array) -> None:
        """Count points; does not wait for the device.

        Args:
            prediction: Logits ``(N, C)`` or ``(B, C, N)``, any number of dimensions behind C, or class indices of the
                shape of ``label``.
            label: True classes, of any shape.
        """
        predicted, true = as_classes(prediction, label, self.num_classes, type(self).__name__)
        self._add(counts=tally(self._bins(predicted, true), math.prod(self._shape)).view(self._shape))

    def compute(self) -> dict[str, float]:
        """Return the numbers over all points; waits for the device.

        With n_ij the points of class i that were taken for class j: ``IoU/NAME`` is n_ii / (Σ_j n_ij + Σ_j n_ji -
        n_ii), ``mIoU`` their mean, ``OA`` (overall accuracy) Σ_i n_ii / Σ_ij n_ij, ``mAcc`` the mean of n_ii / Σ_j
        n_ij. A class that occurs neither in labels nor in predictions has the IoU NaN and is left out of ``mIoU``, one
        that no label has is left out of ``mAcc``. Points whose logits hold NaN are taken for no class: they count as
        wrong, and a warning says how many they are.

        Raises:
            ResultError: Labels or predictions were no classes.
        """
        rows = self._checked().double()
        matrix, labels = rows[:, :-1], rows.sum(1)
        hits, predictions = matrix.diag(), matrix.sum(0)
        iou, accuracy = hits / (labels + predictions - hits), hits / labels
        if self.ignore_index is not None and 0 <= self.ignore_index < self.num_classes:
            iou[self.ignore_index] = float("nan")
        means = {"mIoU": iou.nanmean(), "OA": hits.sum() / labels.sum(), "mAcc": accuracy.nanmean()}
        each = {f"IoU/{name}": value for name, value in zip(self.names, iou, strict=True)}
        return {name: value.item() for name, value in (means | each).items()}

    @property
    def matrix(self) -> torch.Tensor:
        """How many points of each true class (rows) were taken for each class (columns), int64 on the device.

        Points whose logits hold NaN were taken for none.
        """
        return self._sums["counts"][1:-2, 1:-2].clone()

    def _bins(self, predicted: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
        """Return the bin in which each point is counted; what is no class must not reach a bin of another pair."""
        rows, columns = true.clamp(-1, self.num_classes), predicted.clamp(-1, self.num_classes)
        columns.masked_fill_(predicted == NAN_CLASS, self.num_classes + 1)
        if self.ignore_index is not None:
            rows.masked_fill_(true == self.ignore_index, self.num_classes + 1)
        return columns.add_(rows, alpha=self._shape[1]).add_(self._shape[1] + 1)

    def _checked(self) -> torch.Tensor:
        """Return the counts of the classes (rows) on the host, those of NaN in a column behind the classes.

        Raises:
            ResultError: Labels or predictions were no classes; it tells how many.
        """
        held = self._read()["counts"].long()
        labelled, classes = held[1:-2], [*range(1, self.num_classes + 1), -1]
        rows = labelled[:, classes]
        wrong_labels, wrong_predictions = (held[0] + held[-2]).sum().item(), (labelled.sum() - rows.sum()).item()
        if wrong_labels or wrong_predictions:
            message = (
                f"ConfusionMatrix got {wrong_labels} labels and {wrong_predictions} predictions, of {held.sum()} "
                f"points, that are no classes; expected 0 to {self.num_classes - 1}, or labels of ignore_index="
                f"{self.ignore_index}; map the labels onto the classes, or set ignore_index to those to leave out"
            )
            raise ResultError(message)
        warn_of_nan(self, int(rows[:, -1].sum()), int(rows.sum()))
        return rows
