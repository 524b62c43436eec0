"""The batch of a step without one of its samples, each in turn."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vision3d_engine.checkpoint.files import read_checkpoint, write_checkpoint
from vision3d_engine.core.compare import differences
from vision3d_engine.core.errors import DataError
from vision3d_engine.core.portable import decoded, encoded
from vision3d_engine.core.tracebacks import cause_of
from vision3d_engine.core.tree import to_cpu
from vision3d_engine.data.split import split_batch


def without_each(batch: Any, loader: Any, samples: Sequence[Any]) -> list[Any]:
    """Return a batch without each of its samples in turn.

    The samples are loaded again, or else the batch is split; what joins all of them to the same batch, bit for bit, is
    believed to join fewer of them too.

    Args:
        batch: the batch, on the host.
        loader: the loader that has joined it.
        samples: what its data set makes the samples of; none where they are not known.

    Raises:
        DataError: when it cannot be taken apart, saying why.
    """
    collate = getattr(loader, "collate_fn", None)
    if collate is None:
        raise DataError(_WHOLE.format("the loader has no collate_fn"))
    ways: dict[str, Callable[[], list[Any]]] = {"split": lambda: split_batch(batch, {})[0]}
    if samples:
        ways = {"loaded again": lambda: [loader.dataset[sample] for sample in samples]} | ways
    parts = _parts(batch, collate, ways)
    if len(parts) == 1:
        raise DataError("the batch holds one sample, without which there is no step")
    return [collate(parts[:place] + parts[place + 1 :]) for place in range(len(parts))]


def _parts(batch: Any, collate: Callable[[list[Any]], Any], ways: Mapping[str, Callable[[], list[Any]]]) -> list[Any]:
    """Return the samples of a batch, taken in the first way that makes the same batch of them."""
    reasons = []
    for way, take in ways.items():
        try:
            parts = take()
            other = next(differences(batch, collate(parts)), None)
        except Exception as error:  # noqa: BLE001  of the script's data set or collate_fn too
            other = cause_of(error)
        else:
            if other is None:
                return parts
        reasons.append(f"{way}: {other}")
    raise DataError(_WHOLE.format("; ".join(reasons)))


def write_batches(folder: Path, batches: Sequence[Any]) -> list[str]:
    """Write batches as files of data only into a folder, and return where they lie."""
    folder.mkdir(exist_ok=True)
    paths = [folder / f"batch-{number}.pt" for number in range(len(batches))]
    for path, batch in zip(paths, batches, strict=True):
        write_checkpoint(path, {"batch": encoded(to_cpu(batch), "['batch']")})
    return [str(path) for path in paths]


def read_batch(path: Path) -> Any:
    """Return a batch that `write_batches` has written."""
    return decoded(read_checkpoint(path)["batch"])


_WHOLE = (
    "the batch cannot be taken apart into its samples ({}). Expected is a loader whose collate_fn makes the same batch "
    "again of samples that it loads by their position in the run (build_dataloader, or torch's DataLoader over a data "
    "set with indices), or that split_batch takes out of it"
)
