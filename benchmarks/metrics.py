"""What an update of a metric over a whole set costs, beside torchmetrics' own loop, and how often it reads the device.

    python benchmarks/metrics.py [--rounds 15] [--out metrics.json]

All contestants take in the same batch in turn; medians over rounds, CPU time of the thread, since other processes share
the machine. What would make the host wait for a GPU is counted on the CPU, where the same operations are called.
"""

import argparse
import json
import os
import platform
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torchmetrics.classification import MulticlassConfusionMatrix, MulticlassJaccardIndex

from vision3d_engine.metrics.confusion_matrix import ConfusionMatrix
from vision3d_engine.metrics.point_sets import PointSetDistances
from vision3d_engine.metrics.registration import RegistrationRecall

POINTS, CLASSES, IGNORED = (1_000, 10_000, 100_000, 1_000_000), (13, 40), 255
# Operations whose result, or the size of it, the host must know.
READS = ("_local_scalar_dense", "item", "nonzero", "bincount", "masked_select", "unique", "is_nonzero", "equal")
Update = Callable[[], Any]


class Reads(TorchDispatchMode):
    """Counts the operations that wait for a device, if tensors are there."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        has_mask = name == "index" and any(part is not None and part.dtype == torch.bool for part in args[1])
        self.count += name in READS or has_mask
        return function(*args, **(kwargs or {}))


def reads_of(update: Update) -> int:
    with Reads() as reads:
        update()
    return reads.count


def measure(updates: dict[str, Update], points: int, rounds: int) -> dict[str, Any]:
    """Return microseconds an update, by contestant: the median, the quartiles, and how often it reads."""
    repeats = max(20_000 // points, 1)
    times: dict[str, list[float]] = {name: [] for name in updates}
    for _ in range(rounds + 1):
        for name, update in updates.items():
            started = time.thread_time()
            for _ in range(repeats):
                update()
            times[name].append((time.thread_time() - started) / repeats * 1e6)
    kept = {name: each[1:] for name, each in times.items()}
    return {
        name: {"us": median(each), "quartiles": quantiles(each)[::2], "reads": reads_of(updates[name])}
        for name, each in kept.items()
    }


def segmentation(points: int, classes: int, ignore_index: int | None) -> dict[str, Update]:
    prediction, label = torch.randint(classes, (2, points)).unbind()
    if ignore_index is not None:
        label[::10] = ignore_index
    ours = ConfusionMatrix(classes, ignore_index=ignore_index)
    options: dict[str, Any] = {"num_classes": classes, "ignore_index": ignore_index}
    metrics = {
        "torchmetrics ConfusionMatrix": MulticlassConfusionMatrix(**options, validate_args=False),
        "torchmetrics JaccardIndex": MulticlassJaccardIndex(**options, validate_args=False),
        "torchmetrics ConfusionMatrix, validated": MulticlassConfusionMatrix(**options, validate_args=True),
        "torchmetrics JaccardIndex, validated": MulticlassJaccardIndex(**options, validate_args=True),
    }
    theirs = {name: lambda metric=metric: metric.update(prediction, label) for name, metric in metrics.items()}
    return {"ours": lambda: ours.update(prediction, label), **theirs}


def clouds(points: int) -> dict[str, Update]:
    """Torchmetrics has no counterpart of these."""
    recall, distances = RegistrationRecall(), PointSetDistances()
    transforms = torch.eye(4).expand(16, 4, 4).clone()
    one, other = torch.randn(2, 1, points, 3).unbind()
    return {
        "ours, RegistrationRecall of 16 pairs": lambda: recall.update(transforms, transforms),
        "ours, PointSetDistances": lambda: distances.update(one, other),
    }


def row(title: str, found: dict[str, Any]) -> None:
    base = found[next(iter(found))]["us"]
    print(f"\n{title}")
    for name, each in found.items():
        low, high = each["quartiles"]
        ratio = base / each["us"]
        print(f"  {name:42}{each['us']:10.0f} us ({low:.0f} to {high:.0f})  ours is {ratio:.2f}  {each['reads']} reads")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path("metrics.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # torchmetrics warns of compute before update
    report: dict[str, Any] = {"machine": platform.platform(), "cores": os.cpu_count(), "torch": torch.__version__}
    for classes in CLASSES:
        for ignored in (None, IGNORED):
            for points in POINTS:
                title = f"{points} points, {classes} classes, ignore_index {ignored}"
                report[title] = measure(segmentation(points, classes, ignored), points, options.rounds)
                row(title, report[title])
    report["clouds"] = measure(clouds(1_000), 1_000, options.rounds)
    row("clouds of 1000 points", report["clouds"])
    options.out.write_text(json.dumps(report, indent=1))
    print(f"\nwritten to {options.out}")


if __name__ == "__main__":
    main()
