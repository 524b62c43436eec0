"""Errors of torch's transport that tell of another process, in words that say what to do."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from vision3d_engine.core.errors import ProcessError, text_of

_LOST = re.compile(r"(?is)gloo/.*(closed|reset|timed? ?out|broken pipe|refused|unreachable|no route)")


def is_lost_connection(error: BaseException) -> bool:
    """Tell whether an error says that another process is lost, or late, and nothing of this process's own."""
    is_lost = isinstance(error, RuntimeError) and _LOST.search(text_of(error)) is not None
    return is_lost or isinstance(error, ProcessError | dist.DistError)


@contextmanager
def exchange(what: str) -> Iterator[None]:
    """Turn the errors of a lost or late process into one that says what to do.

    Raises:
        ProcessError: naming the exchange.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_lost_connection(error):
            raise
        message = f"{what} with the other processes failed: {lost_text(error)}. Go on with --resume"
        raise ProcessError(message) from error


def lost_text(error: BaseException) -> str:
    """Return what is lost, in the transport's words, without the place in its source code."""
    first = (text_of(error).splitlines() or [""])[0]
    return "the connection to another process is lost (" + re.sub(r"^\[[^\]]*\] ", "", first)[:200] + ")"
