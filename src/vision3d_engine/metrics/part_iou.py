"""Part segmentation: IoU of the parts of each shape, as on ShapeNet part."""

from collections.abc import Mapping, Sequence

import torch

from vision3d_engine.core.errors import ResultError
from vision3d_engine.metrics.arguments import are_whole, as_tensor, require
from vision3d_engine.metrics.whole_set import (
    NAN_CLASS,
    Array,
    WholeSetMetric,
    as_classes,
    counts,
    described,
    exact,
    outside,
    tally,
    warn_of_nan,
    zeros,
)

SHAPENET_PARTS: Mapping[str, Sequence[int]] = {
    "airplane": range(4),
    "bag": range(4, 6),
    "cap": range(6, 8),
    "car": range(8, 12),
    "chair": range(12, 16),
    "earphone": range(16, 19),
    "guitar": range(19, 22),
    "knife": range(22, 24),
    "lamp": range(24, 28),
    "laptop": range(28, 30),
    "motorbike": range(30, 36),
    "mug": range(36, 38),
    "pistol": range(38, 41),
    "rocket": range(41, 44),
    "skateboard": range(44, 47),
    "table": range(47, 50),
}


class PartIoU(WholeSetMetric):
    """The mean over shapes of the mean IoU over the parts of the shape's category.

    A part of the category that a shape has neither in its labels nor in its prediction counts as IoU 1 (Qi et al.,
    PointNet, CVPR 2017, section 5.1). As there, and in PointNet++, logits are compared among the parts of the category
    only; hand in class indices to have it otherwise, as in DGCNN.

    Args:
        parts: The parts of each category, by name, in the order of the categories' numbers. Categories may share
            parts, and there may be numbers that are no part.
    """

    def __init__(self, parts: Mapping[str, Sequence[int]] = SHAPENET_PARTS) -> None:
        is_right = isinstance(parts, Mapping) and bool(parts) and all(map(are_whole, parts.values()))
        expected = "the parts of each category by its name, whole numbers from 0, such as {'mug': [36, 37]}"
        require(is_right, self, expected, parts=parts)
        self.parts = {name: tuple(each) for name, each in parts.items()}
        self.names = tuple(parts)
        self.num_parts = max(map(max, parts.values())) + 1
        self._members = torch.zeros(len(parts), self.num_parts, dtype=torch.bool)
        for row, each in zip(self._members, parts.values(), strict=True):
            row[list(each)] = True
        super().__init__(iou=zeros(len(parts)), shapes=counts(len(parts)), wrong=counts(3), nan=counts(2))

    def update(self, prediction: Array, label: Array, category: Array | int) -> None:
        """Take in shapes; does not wait for the device.

        Args:
            prediction: Logits ``(B, P, N)`` or part indices ``(B, N)``; of one shape ``(N, P)`` or ``(N,)``.
            label: True parts ``(B, N)`` or ``(N,)``.
            category: Numbers of the categories ``(B,)``, or one number.
        """
        prediction, label = as_tensor(prediction), as_tensor(label)
        if label.ndim == 1:
            prediction, label = (prediction.T if prediction.ndim == 2 else prediction)[None], label[None]  # noqa: PLR2004
        category = self._category(category, label)
        members = self._members.to(label.device, non_blocking=True)[category.clamp(0, len(self.names) - 1)]
        if prediction.is_floating_point() and prediction.shape[1:2] == (self.num_parts,):
            prediction = prediction.masked_fill(~members[:, :, None], float("-inf"))
        predicted, true = as_classes(prediction, label, self.num_parts, type(self).__name__)
        self._add_shapes(shape_iou(predicted, true, members), category)
        self._add_wrong(predicted, true, category, members)

    def compute(self) -> dict[str, float]:
        """Return the numbers over all shapes; waits for the device.

        ``mIoU/instance`` is the mean over shapes, ``mIoU/category`` the mean over categories of the means over their
        shapes, which ``IoU/NAME`` are; a category without a shape is NaN and left out. Points whose logits hold NaN are
        taken for no part: they count as wrong, and a warning says how many they are.

        Raises:
            ResultError: Categories, labels or predictions were none of those there are.
        """
        sums = self._read()
        self._check(*sums["wrong"].long().tolist())
        warn_of_nan(self, *sums["nan"].long().tolist())
        each = sums["iou"] / sums["shapes"]
        means = {"mIoU/instance": sums["iou"].sum() / sums["shapes"].sum(), "mIoU/category": each.nanmean()}
        by_name = {f"IoU/{name}": value for name, value in zip(self.names, each, strict=True)}
        return {name: value.item() for name, value in (means | by_name).items()}

    def _category(self, category: Array | int, label: torch.Tensor) -> torch.Tensor:
        """Return the category of each shape ``(B,)`` where the labels ``(B, N)`` are."""
        found = as_tensor(category)
        if label.ndim != 2 or found.is_floating_point() or found.numel() != len(label):  # noqa: PLR2004  (B, N)
            message = f"PartIoU.update got labels {described(label)} and categories {described(found)}"
            raise ResultError(f"{message}; expected (B, N) and (B,), or (N,) and one number, whole ones")
        return found.reshape(-1).long().to(label.device, non_blocking=found.device.type == "cpu")

    def _add_shapes(self, iou: torch.Tensor, category: torch.Tensor) -> None:
        """Add each shape to its category; a comparison, since a scatter of fractions has no order on a GPU."""
        is_of = category[:, None] == torch.arange(len(self.names), device=category.device)
        self._add(iou=torch.where(is_of, iou[:, None], 0).sum(0), shapes=is_of.sum(0))

    def _add_wrong(
        self, predicted: torch.Tensor, true: torch.Tensor, category: torch.Tensor, members: torch.Tensor
    ) -> None:
        """Count categories, labels and predictions that there are not; a prediction may be of another category."""
        is_part = members.gather(1, true.clamp(0, self.num_parts - 1)) & ~outside(true, self.num_parts)
        is_nan = predicted == NAN_CLASS
        is_none = outside(predicted, self.num_parts) & ~is_nan
        wrong = outside(category, len(self.names)), ~is_part, is_none
        self._add(wrong=torch.stack([each.sum() for each in wrong]))
        self._add(nan=torch.stack([is_nan.sum(), torch.ones_like(predicted).sum()]))

    def _check(self, categories: int, labels: int, predictions: int) -> None:
        if categories or labels or predictions:
            message = (
                f"PartIoU got {categories} shapes of no category from 0 to {len(self.names) - 1}, {labels} labels that "
                f"are no part of their shape's category and {predictions} predictions outside 0 to "
                f"{self.num_parts - 1}; expected the numbers of `parts`; map those of the data set onto them"
            )
            raise ResultError(message)


def shape_iou(predicted: torch.Tensor, true: torch.Tensor, members: torch.Tensor) -> torch.Tensor:
    """Return the mean IoU ``(B,)`` over each shape's parts, of which ``members`` ``(B, P)`` tells.

    Args:
        predicted: Part indices ``(B, N)``; one outside 0 to P - 1 is of no part.
        true: Likewise.
        members: Which parts the category of a shape has, a flag each.
    """
    hits, labels, predictions = (
        tally_rows(each, members.shape[1]) for each in (torch.where(predicted == true, true, -1), true, predicted)
    )
    union = labels + predictions - hits
    iou = torch.where(union == 0, 1, exact(hits) / union.clamp(min=1))
    return (iou * members).sum(1) / members.sum(1)


def tally_rows(classes: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Return how often each class is in each row ``(B, N)``, as ``(B, C)``."""
    size = num_classes + 1  # the last bin is for what is no class
    rows = torch.arange(len(classes), device=classes.device)[:, None] * size
    bins = torch.where(outside(classes, num_classes), num_classes, classes) + rows
    return tally(bins, len(classes) * size).view(-1, size)[:, :num_classes]
