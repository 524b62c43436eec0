"""Compare nests of data bit for bit."""

import math
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from vision3d_engine.core.tree import describe, entries, step


def differences(a: Any, b: Any, path: str = "") -> Iterator[str]:
    """Yield one line for each place where two nests are not equal bit for bit; a nan equals a nan.

    Tensors and arrays must agree in type, shape and every bit; all else by ``==`` and type.
    """
    left, right, place = entries(a), entries(b), path or "value"
    if type(a) is not type(b):
        yield f"{place}: {describe(a)} and {describe(b)}"
    elif left is not None and right is not None:
        for key in left | right:
            if key in left and key in right:
                yield from differences(left[key], right[key], path + step(a, key))
            else:
                yield f"{path}{step(a, key)}: only in the {'first' if key in left else 'second'}"
    elif isinstance(a, torch.Tensor | np.ndarray):
        if a.shape != b.shape or a.dtype != b.dtype:
            yield f"{place}: {describe(a)} and {describe(b)}"
        elif as_bytes(a) != as_bytes(b):
            yield f"{place}: {describe(a)} with other contents"
    elif a != b and not (a != a and b != b):  # noqa: PLR0124  only a nan is not itself
        yield f"{place}: {a!r} and {b!r}"


def same_bits(a: float, b: float) -> bool:
    """Tell whether two numbers have the same bits as float64; NaN is NaN."""
    return struct.pack("d", a) == struct.pack("d", b) or (math.isnan(a) and math.isnan(b))


def as_bytes(value: Any) -> bytes:
    """Return the bits of a tensor or an array."""
    if isinstance(value, np.ndarray):
        return value.tobytes()
    flat = value.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
