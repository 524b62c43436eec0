"""Compare nests of data bit for bit."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from vision3d_engine.core.tree import describe, entries


def differences(a: Any, b: Any, path: str = "") -> Iterator[str]:
    """Yield one line for each place where two nests are not equal bit for bit; a nan equals a nan.

    Tensors and arrays must agree in type, shape and every bit; all else by ``==`` and type.
    """
    left, right = entries(a), entries(b)
    if type(a) is not type(b):
        yield f"{path or 'value'}: {describe(a)} and {describe(b)}"
    elif left is not None and right is not None:
        yield from _of_entries(left, right, path)
    elif isinstance(a, torch.Tensor | np.ndarray):
        yield from _of_arrays(a, b, path)
    elif a != b and not (a != a and b != b):  # noqa: PLR0124  only a nan is not itself
        yield f"{path or 'value'}: {a!r} and {b!r}"


def _of_entries(a: dict, b: dict, path: str) -> Iterator[str]:
    for key in a | b:
        place = f"{path}[{key!r}]"
        if key in a and key in b:
            yield from differences(a[key], b[key], place)
        else:
            yield f"{place}: only in the {'first' if key in a else 'second'}"


def _of_arrays(a: Any, b: Any, path: str) -> Iterator[str]:
    if a.shape != b.shape or a.dtype != b.dtype:
        yield f"{path or 'value'}: {describe(a)} and {describe(b)}"
    elif as_bytes(a) != as_bytes(b):
        yield f"{path or 'value'}: {describe(a)} with other contents"


def as_bytes(value: Any) -> bytes:
    """Return the bits of a tensor or an array."""
    if isinstance(value, np.ndarray):
        return value.tobytes()
    flat = value.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
