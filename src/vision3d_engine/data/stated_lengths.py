"""The points of each sample, as a data set states them."""

import inspect
from typing import Any

import numpy as np
from torch.utils.data import ConcatDataset, Subset

from vision3d_engine.core.errors import DataError
from vision3d_engine.core.tree import describe


def stated_lengths(dataset: Any) -> np.ndarray | None:
    """Return the entry or method ``lengths`` of a data set, also through torch's `Subset` and `ConcatDataset`.

    None without one.

    Raises:
        DataError: for other than a whole number for each sample.
    """
    stated = getattr(dataset, "lengths", None)
    if stated is not None:
        return _checked(_called(stated, dataset) if callable(stated) else stated, dataset)
    if type(dataset) is Subset:
        inner = stated_lengths(dataset.dataset)
        return None if inner is None else inner[np.asarray(dataset.indices, dtype=np.int64)]
    if type(dataset) is ConcatDataset:
        parts = [lengths for part in dataset.datasets if (lengths := stated_lengths(part)) is not None]
        return np.concatenate(parts) if len(parts) == len(dataset.datasets) else None
    return None


def _called(method: Any, dataset: Any) -> Any:
    try:
        inspect.signature(method).bind()
    except TypeError as error:
        message = f"batch_points needs the points of all samples: {type(dataset).__name__}.lengths is a method that "
        message += f"asks for more than self ({error}). Define lengths(self), which returns all"
        raise DataError(message) from error
    return method()


def _checked(stated: Any, dataset: Any) -> np.ndarray:
    lengths = np.asarray([] if stated is None else stated)
    lengths = lengths if lengths.size else lengths.astype(np.int64)
    is_whole = lengths.ndim == 1 and lengths.dtype.kind in "iu" and bool((lengths >= 0).all())
    if stated is None or len(lengths) != len(dataset) or not is_whole:
        message = f"batch_points needs the points of each sample: {type(dataset).__name__}.lengths must have "
        message += f"{len(dataset)} whole numbers, one a sample, but is {describe(stated)}. Set it in the data set's "
        raise DataError(f"{message}constructor, or define a method lengths(self) that returns them")
    return lengths.astype(np.int64)
