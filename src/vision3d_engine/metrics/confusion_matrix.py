"""Semantic segmentation and classification: IoU and accuracy over all points of a set."""

import math
from collections.abc import Sequence

import torch

from vision3d_engine.core.errors import ConfigError, ResultError
from vision3d_engine.metrics.whole_set import Array, WholeSetMetric, as_classes, counts, tally


class ConfusionMatrix(WholeSetMetric):
    """Counts each pair of true and predicted class, and takes IoU and accuracies over all of them.

    Args:
        num_classes: C; classes are 0 to C - 1.
        names: Their names in what ``compute`` returns; by default their numbers.
        ignore_index: Labels of this value are left out, whatever was predicted there. If it is a class, that class is
            left out of all means too.
    """

    def __init__(self, num_classes: int, names: Sequence[str] | None = None, ignore_index: int | None = None) -> None:
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.names = tuple(str(index) for index in range(num_classes)) if names is None else tuple(names)
        if num_classes < 1 or len(set(self.names)) != len(self.names) or len(self.names) != num_classes:
            message = f"ConfusionMatrix got num_classes {num_classes} and names {list(self.names)}"
            raise ConfigError(f"{message}; expected one class or more, and a name of its own for each")
        # Rows: labels below 0, the classes, labels above, labels to be ignored; columns: predictions, but for the last.
        self._shape = num_classes + 3, num_classes + 2
        super().__init__(counts=counts(*self._shape))

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
        that no label has is left out of ``mAcc``.

        Raises:
            ResultError: Labels or predictions were no classes.
        """
        matrix = self._checked().double()
        hits, labels, predictions = matrix.diag(), matrix.sum(1), matrix.sum(0)
        iou, accuracy = hits / (labels + predictions - hits), hits / labels
        if self.ignore_index is not None and 0 <= self.ignore_index < self.num_classes:
            iou[self.ignore_index] = float("nan")
        means = {"mIoU": iou.nanmean(), "OA": hits.sum() / matrix.sum(), "mAcc": accuracy.nanmean()}
        each = {f"IoU/{name}": value for name, value in zip(self.names, iou, strict=True)}
        return {name: value.item() for name, value in (means | each).items()}

    @property
    def matrix(self) -> torch.Tensor:
        """How many points of each true class (rows) were taken for each class (columns), int64 on the device."""
        return self._sums["counts"][1:-2, 1:-1].clone()

    def _bins(self, predicted: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
        """Return the bin in which each point is counted; what is no class must not reach a bin of another pair."""
        rows, columns = true.clamp(-1, self.num_classes), predicted.clamp(-1, self.num_classes)
        if self.ignore_index is not None:
            rows.masked_fill_(true == self.ignore_index, self.num_classes + 1)
        return columns.add_(rows, alpha=self._shape[1]).add_(self._shape[1] + 1)

    def _checked(self) -> torch.Tensor:
        """Return the matrix on the host, or raise an error that tells how many points were no classes."""
        held = self._read()["counts"]
        labelled, matrix = held[1:-2], held[1:-2, 1:-1]
        wrong_labels, wrong_predictions = (held[0] + held[-2]).sum().item(), (labelled.sum() - matrix.sum()).item()
        if wrong_labels or wrong_predictions:
            message = (
                f"ConfusionMatrix got {wrong_labels} labels and {wrong_predictions} predictions, of {held.sum()} "
                f"points, that are no classes; expected 0 to {self.num_classes - 1}, or labels of ignore_index="
                f"{self.ignore_index}; map the labels onto the classes, or set ignore_index to those to leave out"
            )
            raise ResultError(message)
        return matrix
