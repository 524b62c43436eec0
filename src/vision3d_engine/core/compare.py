"""Compare nests of data bit for bit."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from vision3d_engine.core.tree import describe


def differences(a: Any, b: Any, path: str = "") -> Iterator[str]:
    """Yield one line for each place where two nests are not equal bit for bit; a nan equals a nan.

    Tensors and arrays must agree in type, shape and every bit; all else by ``==`` and type.
    """
    if type(a) is not type(b):
        yield f"{path or 'value'}: {describe(a)} and {describe(b)}"
    elif isinstance(a, Mapping):
        yield from _of_mappings(a, b, path)
    elif isinstance(a, list | tuple):
        yield from _of_sequences(a, b, path)
    elif isinstance(a, torch.Tensor | np.ndarray):
        yield from _of_arrays(a, b, path)
    elif a != b and not (a != a and b != b):  # noqa: PLR0124  only a nan is not itself
        yield f"{path or 'value'}: {a!r} and {b!r}"


def _of_mappings(a: Mapping, b: Mapping, path: str) -> Iterator[str]:
    for key in [*a, *(key for key in b if key not in a)]:
        place = f"{path}[{key!r}]"
        if key in a and key in b:
            yield from differences(a[key], b[key], place)
        else:
            yield f"{place}: only in the {'first' if key in a else 'second'}"


def _of_sequences(a: Any, b: Any, path: str) -> Iterator[str]:
    if len(a) != len(b):
        yield f"{path or 'value'}: {len(a)} and {len(b)} entries"
    for number, pair in enumerate(zip(a, b, strict=False)):
        yield from differences(*pair, f"{path}[{number}]")


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
