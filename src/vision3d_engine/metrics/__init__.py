"""Numbers of a pass on the device, the step clock; meters, boards, timers and whole-set metrics for users."""

from vision3d_engine.metrics.confusion_matrix import ConfusionMatrix
from vision3d_engine.metrics.part_iou import SHAPENET_PARTS, PartIoU
from vision3d_engine.metrics.point_sets import PointSetDistances
from vision3d_engine.metrics.registration import FeatureMatchingRecall, RegistrationRecall, RMSERecall
from vision3d_engine.metrics.whole_set import WholeSetMetric

__all__ = [
    "SHAPENET_PARTS",
    "ConfusionMatrix",
    "FeatureMatchingRecall",
    "PartIoU",
    "PointSetDistances",
    "RMSERecall",
    "RegistrationRecall",
    "WholeSetMetric",
]
