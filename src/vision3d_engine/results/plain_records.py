"""Records of single samples as JSON has them, from which the same ones are made again when a test goes on."""

from typing import Any

from vision3d_engine.core.errors import ResultError
from vision3d_engine.core.tree import describe

_SCALARS = {bool, int, float, str, type(None)}
_LOST = "lost"


def written(value: Any) -> Any:
    """Return a nest of lists, tuples, dicts with text for keys, numbers, texts and None as JSON has it.

    Of anything else there is only a word, for which `read` refuses it: most tests end without being gone on with.
    """
    if type(value) in _SCALARS:
        return value
    if type(value) is list:
        return [written(part) for part in value]
    if type(value) is tuple:
        return {"tuple": [written(part) for part in value]}
    if type(value) is dict and all(type(key) is str for key in value):
        return {"dict": {key: written(part) for key, part in value.items()}}
    return {_LOST: describe(value)}


def read(value: Any) -> Any:
    """Return a nest as it was before `written`.

    Raises:
        ResultError: for what could not be written.
    """
    if isinstance(value, list):
        return [read(part) for part in value]
    if not isinstance(value, dict):
        return value
    ((kind, parts),) = value.items()
    if kind == _LOST:
        raise ResultError(_NOT_KEPT.format(parts))
    return tuple(map(read, parts)) if kind == "tuple" else {key: read(part) for key, part in parts.items()}


_NOT_KEPT = (
    "this test cannot be gone on with: add_records got {} in batches that are done, and only numbers, texts, None, and "
    "lists, tuples and dicts of these are kept for --resume. Give it such (.item(), .tolist()), and start anew with "
    "--overwrite"
)
