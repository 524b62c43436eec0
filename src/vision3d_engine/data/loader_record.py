"""What a run writes down of its loaders: enough to say later whether two runs have read the same data alike."""

from typing import Any

from vision3d_engine.data.resumable_loader import ResumableLoader
from vision3d_engine.data.sample_seeds import SeededDataset

_NUMBERS = ("batch_size", "num_workers")


def record_of(loader: ResumableLoader) -> dict[str, Any]:
    """Return classes, sizes and order of a loader as plain data; no sample is loaded, and nothing random drawn."""
    given = loader.registered
    classes = {"loader": type(given).__name__, "dataset": _class_of(getattr(given, "dataset", None))}
    numbers = {name: value for name in _NUMBERS if isinstance(value := getattr(given, name, None), int)}
    return {**classes, **numbers, "batches": loader.length, **_known(loader.fingerprint())}


def _class_of(dataset: Any) -> str | None:
    """Return the class of a data set of the user's, also of one that `build_dataloader` seeds."""
    inside = dataset.dataset if isinstance(dataset, SeededDataset) else dataset
    return None if inside is None else type(inside).__name__


def _known(fingerprint: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fingerprint.items() if value is not None}
